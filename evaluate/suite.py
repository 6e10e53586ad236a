"""A suite: which tasks a model is scored on, as a YAML file.

    pretrained:                     # P: what the model could do before
      prose: {scorer: perplexity, file: prose.jsonl}
    target:                         # T: what it was fine-tuned on
      tagging: {scorer: exact-match, file: test.jsonl, max_new_tokens: 64}

Files are found relative to the suite. Every task ends in one score in [0, 100], more being better (`relative` may
exceed 100), so that means over tasks mean something.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from ..fusion.errors import DataError
from ..fusion.recipe.document import read_documents
from ..fusion.rows import OrIgnore

TaskSide = Literal["pretrained", "target"]
RESERVED = ("pretrained", "target", "avg", "h-score", "source-target-avg")  # names of means


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OnFile(_Schema):
    """A task on a file of rows: JSONL, Parquet or text.

    Attributes:
        file: Relative to the suite.
        media: Folder of the images that rows name, relative to the suite. Default: the file's own.
        limit: Score the first rows only.
        fields: Where the file names a field otherwise: ours to theirs, as `{prompt: question}`.
        unknown_fields: What to do about a field of a row that nothing reads.
    """

    file: Path
    media: Path | None = None
    limit: PositiveInt | None = None
    fields: dict[str, str] = {}
    unknown_fields: OrIgnore = "error"


class Perplexity(OnFile):
    """How well the model predicts text, or a completion after its prompt.

    Attributes:
        score: What counts as the score: `accuracy`, the percentage of tokens that the model ranks first; `probability`,
            the geometric mean of their probabilities in percent, 100/perplexity; `relative`, 100·reference/perplexity.
        reference: A perplexity, such as the base's, for `relative`.
    """

    scorer: Literal["perplexity"]
    score: Literal["accuracy", "probability", "relative"] = "accuracy"
    reference: PositiveFloat | None = None

    @model_validator(mode="after")
    def _has_reference(self) -> Perplexity:
        if (self.score == "relative") != (self.reference is not None):
            raise ValueError("`score: relative` and `reference` go together")
        return self


class WritingTask(OnFile):
    """A task in which the model writes, greedily.

    Attributes:
        max_new_tokens: Longest answer.
        stop: An answer ends where one of these begins; blank space before an answer does not end it.
        penalties: Decode with what the model's generation_config.json asks for besides sampling, such as a
            `repetition_penalty`; models that are compared may then differ in it.
    """

    max_new_tokens: PositiveInt = 32
    stop: list[str] = ["\n"]
    penalties: bool = False


class ExactMatch(WritingTask):
    """The percentage of prompts that the model answers with the very text.

    Attributes:
        ignore_case, ignore_punctuation: What does not count as a difference; outer white space never does.
    """

    scorer: Literal["exact-match"]
    ignore_case: bool = False
    ignore_punctuation: bool = False


class Vqa(WritingTask):
    """VQA accuracy: an answer counts min(people who gave it / 3, 1)."""

    scorer: Literal["vqa"]
    max_new_tokens: PositiveInt = 16


class MultipleChoice(OnFile):
    """The percentage of questions where the right choice is the likeliest.

    Attributes:
        choices: The same for every row; else each row has its own.
        normalize: By what a choice's log-likelihood is divided.
    """

    scorer: Literal["multiple-choice"]
    choices: list[str] | None = None
    normalize: Literal["none", "tokens", "characters"] = "none"


class Classification(OnFile):
    """The percentage of texts or images that a model with a classification head puts into the right class."""

    scorer: Literal["classification"]


class Caption(WritingTask):
    """CIDEr of generated captions, against several references each, times 100 as captioning papers give it."""

    scorer: Literal["caption"]


class Harness(_Schema):
    """A task of lm-evaluation-harness.

    Attributes:
        task: Its name there.
        metric: The one that counts, as a fraction; `acc_norm`, for instance.
        include: A folder of tasks of one's own, relative to the suite.
    """

    scorer: Literal["lm-eval"]
    task: str
    metric: str = "acc"
    include: Path | None = None
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: PositiveInt | None = None


Task = Annotated[
    Perplexity | ExactMatch | Vqa | MultipleChoice | Classification | Caption | Harness, Field(discriminator="scorer")
]


class SuiteFile(_Schema):
    """What a suite's file says."""

    name: str | None = None
    batch_size: PositiveInt = 16
    max_length: PositiveInt = 1024
    pretrained: dict[str, Task] = {}
    target: dict[str, Task] = {}


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite that was read.

    Attributes:
        name: Its own, or its file's.
        file: Where it stands; files of tasks are relative to its folder.
    """

    name: str
    file: Path
    content: SuiteFile

    @property
    def folder(self) -> Path:
        """What the files of tasks are relative to."""
        return self.file.parent

    def tasks(self) -> Iterator[tuple[TaskSide, str, Task]]:
        """Yield side, name and task, the pre-trained ones first."""
        for side in ("pretrained", "target"):
            for name, task in getattr(self.content, side).items():
                yield side, name, task

    def measures(self) -> list[str]:
        """Return the names of all numbers that come out: tasks, then means."""
        sides = {side for side, _, _ in self.tasks()}
        means = RESERVED if len(sides) == 2 else tuple(sides)
        return [*(name for _, name, _ in self.tasks()), *means]


def read_suite(file: Path | str) -> Suite:
    """Return a suite.

    Raises:
        RecipeError: It is not YAML or does not fit; the message has the line.
        DataError: It has no task, one name twice, or a name that means something else.
    """
    file = Path(file)
    document = read_documents(file)[0]
    content = document.validated(SuiteFile)
    suite = Suite(name=content.name or file.stem, file=file, content=content)
    names = [name for _, name, _ in suite.tasks()]
    if not names:
        raise DataError(f"`{file}` names no task", hint="put tasks under `pretrained:` and `target:`")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"`{file}` has `{twice}` on both sides", hint="each task needs a name of its own")
    taken = next((name for name in names if name in RESERVED), None)
    if taken is not None:
        raise DataError(f"`{file}` has a task `{taken}`, which is the name of a mean", hint="give it another name")
    return suite
