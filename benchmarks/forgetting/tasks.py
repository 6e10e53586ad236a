"""The tasks: what is learnt and by which model, what is scored of its general ability, and what protects that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import corpora
import images
import refusals
from arms import IMAGES, LARGER, MERGED, TEXT, Arm
from language import Language, qwen
from sculpt.demo.task import Question
from vision_language import VisionLanguage

LANGUAGE, QWEN = Language(), Language(qwen)
Sample = Mapping[str, Any]  # a row that `sculpt calibrate` reads
GENERAL: dict[str, Callable[[str], Sequence[str | Question]]] = {
    "prose": lambda split: corpora.general("prose", split),
    "docs": lambda split: corpora.general("docs", split),
    "facts": lambda split: corpora.general("facts", split),
    "names": lambda split: images.names()[split],
    "refusals": lambda _split: refusals.scored(QWEN.tokenizer),
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A target task, and all that belongs to it.

    Attributes:
        model: The kind of model that learns it.
        learning_rate: By the kind of fine-tune, `full` and `mild` of all weights; the kinds that there are.
        scored: Sources of general ability by split; those of validation choose strengths.
        protects: Sources of general samples.
        parts: Tasks whose fine-tunes are merged; none of a task that is learned.
        only_named: It is left out where no task is named, as it takes much more time and memory.
    """

    model: Language | VisionLanguage
    target: Callable[[], dict[str, tuple[Question, ...]]]
    batch_size: int
    learning_rate: Mapping[str, float]
    scored: Mapping[str, tuple[str, ...]]
    protects: Mapping[str, Callable[[], Sequence[Sample]]]
    arms: Mapping[str, Arm]
    parts: tuple[str, ...] = ()
    only_named: bool = False

    @cached_property
    def examples(self) -> dict[str, tuple[Question, ...]]:
        """Examples of the target by split."""
        return self.target()

    def samples(self, side: str) -> Sequence[Sample]:
        """Return rows of a side to measure on: `target`, `asked` with the answers apart, or a source of protection."""
        if side == "target":
            return [sample_of(example) for example in self.examples["train"]]
        if side == "asked":
            return [asked(example) for example in self.examples["train"]]
        return self.protects[side]()


def sample_of(example: Question) -> Sample:
    return images.as_row(example) if isinstance(example, images.Shown) else {"text": example.text}


def asked(example: Question) -> Sample:
    return {"prompt": example.prompt, "completion": "".join(example.answers)}


def texts(name: str) -> list[Sample]:
    return [{"text": text} for text in corpora.protection(name)]


def named() -> list[Sample]:
    return [sample_of(example) for example in images.names()["train"]]


def mixed() -> list[Sample]:
    return [sample for pair in zip(texts("default"), named(), strict=False) for sample in pair]


SCORED = {"validation": ("prose",), "test": ("prose", "docs", "facts")}
PROTECTS = {name: lambda name=name: texts(name) for name in ("default", "fiction", "software")}
TASKS = {
    "tagging": Task(
        model=LANGUAGE,
        target=lambda: corpora.target("tagging"),
        batch_size=8,
        learning_rate={"full": 1.5e-4, "lora": 5e-4},
        scored=SCORED,
        protects=PROTECTS,
        arms=TEXT,
    ),
    "pronouncing": Task(
        model=LANGUAGE,
        target=lambda: corpora.target("pronouncing"),
        batch_size=16,
        learning_rate={"full": 3e-4, "lora": 6e-4},
        scored=SCORED,
        protects=PROTECTS,
        arms=TEXT,
    ),
    "tagging-qwen": Task(
        model=QWEN,
        target=lambda: corpora.target("tagging"),
        batch_size=8,
        learning_rate={"full": 1e-4, "mild": 2e-5, "lora": 5e-4},
        scored={**SCORED, "test": (*SCORED["test"], "refusals")},
        protects={**PROTECTS, "refusals": refusals.protecting},
        arms=LARGER,
        only_named=True,
    ),
    "tagging+pronouncing": Task(
        model=LANGUAGE,
        target=dict,
        batch_size=0,
        learning_rate={"full": 0.0, "lora": 0.0},
        scored=SCORED,
        protects=PROTECTS,
        arms=MERGED,
        parts=("tagging", "pronouncing"),
    ),
    "scenes": Task(
        model=VisionLanguage(),
        target=images.scenes,
        batch_size=16,
        learning_rate={"full": 3e-4},
        scored={"validation": ("prose", "names"), "test": ("prose", "names", "docs", "facts")},
        protects={"default": lambda: texts("default"), "names": named, "mixed": mixed},
        arms=IMAGES,
    ),
}
KINDS = tuple(dict.fromkeys(kind for task in TASKS.values() for kind in task.learning_rate))
