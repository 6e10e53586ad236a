"""Code in several languages, from packages whose licences let it be passed on."""

from __future__ import annotations

import re

from collected import pieces
from packages import texts_of
from words import Hand


def is_header(text: str) -> bool:
    return bool(re.search(r"copyright|licen[cs]e|all rights reserved|permission is hereby", text, re.IGNORECASE))


Wanted = tuple[str, tuple[str, ...], str]  # package, endings of names, under which folder


def code(h: Hand, count: int, *wanted: Wanted) -> list[str]:
    """Return as many pieces of each source as of any other; short ones beside long ones."""
    found: list[str] = []
    for number, (package, endings, under) in enumerate(wanted):
        share = count * (number + 1) // len(wanted) - count * number // len(wanted)
        files = [path_text for path_text in texts_of(package, *endings, under=under) if len(path_text[1]) < 200_000]
        chosen = [
            piece
            for _, text in files
            for piece in pieces(text)
            if not is_header(piece) and "coerced" not in piece and max(map(len, piece.splitlines())) < 400
        ]
        for piece in h.some(chosen, share):
            lines = piece.splitlines()
            found.append("\n".join(lines[: h.pick((h.number(3, 12), h.number(10, 30), len(lines)))]))
    return found


def code_python(h: Hand, count: int) -> list[str]:
    django = (
        ("django", (".py",), "django/utils/"),
        ("django", (".py",), "django/db/models/"),
        ("django", (".py",), "django/core/"),
    )
    return code(h, count, *django, *((name, (".py",), "") for name in ("click", "flask", "attrs", "jinja2")))


def code_web(h: Hand, count: int) -> list[str]:
    return code(
        h, count, ("fastify", (".js",), "lib/"), ("undici", (".js",), "lib/"), ("express", (".js",), "lib/"), ("d3-array", (".js",), "src/"), ("lodash", (".js",), "_base"),
        ("undici", (".d.ts",), "types/"), ("fastify", (".d.ts",), "types/"), ("bootstrap", (".scss",), "scss/"), ("bootstrap", (".js",), "js/src/"), ("django", (".html",), "django/contrib/admin/templates/"),
    )  # fmt: skip


def code_systems(h: Hand, count: int) -> list[str]:
    return code(
        h, count, ("tree-sitter", (".c",), "vendor/tree-sitter/lib/src/"), ("tree-sitter", (".h",), "vendor/tree-sitter/lib/"), ("node-addon-api", (".h",), ""), ("nlohmann-json3-dev", (".hpp",), ""),
        ("librust-regex-dev", (".rs",), "usr/share/cargo/registry/regex-1.7.1/src/"), ("librust-smallvec-dev", (".rs",), ""), ("golang-github-spf13-cobra-dev", (".go",), ""), ("golang-github-gorilla-mux-dev", (".go",), ""),
    )  # fmt: skip


def code_other(h: Hand, count: int) -> list[str]:
    return code(
        h, count, ("@capacitor/android", (".java",), ""), ("@capacitor/ios", (".swift",), ""), ("edge-js", (".cs",), "src/"), ("ruby-rack", (".rb",), ""), ("php-twig", (".php",), ""),
        ("lua-penlight", (".lua",), ""), ("bats", (".bash", ".sh", "bats", "bats-exec-test", "bats-exec-suite"), "lib"),
    )  # fmt: skip
