"""What models answer to the same prompts: the quickest look at what a fine-tune forgot and a repair gave back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.encoding import Encoder
from ..data.row import Row
from ..data.rows import open_rows
from ..fusion.checkpoint import Asked
from ..fusion.checkpoint.given import Given as Model
from ..fusion.checkpoint.given import takes_models
from ..fusion.errors import DataError
from ..fusion.progress import Bars, Progress, bars, silent
from ..fusion.rows import RowOptions
from ..fusion.table import Table
from ..live.model import load_model
from ..predict.generation import generate
from .options import Scoring

MAX_PROMPT = 1024  # tokens
AT_ONCE = 8  # prompts, where nobody says how many


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """What models answer.

    Attributes:
        models: As they were asked for.
        asked: Each prompt as people read it, with the answer of each model.
    """

    models: tuple[str, ...]
    asked: tuple[tuple[str, tuple[str, ...]], ...]

    def __repr__(self) -> str:
        return f"SideBySide({len(self.asked)} prompts, {len(self.models)} models)"

    def _repr_html_(self) -> str:
        return self.table().html()

    def table(self) -> Table:
        """Return a row a prompt, a column a model."""
        return Table(columns=["prompt", *self.models], rows=[[prompt, *answers] for prompt, answers in self.asked])

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        asked = [{"prompt": prompt, "answers": list(answers)} for prompt, answers in self.asked]
        return {"models": list(self.models), "asked": asked}


@takes_models("models")
def compare(
    models: Sequence[Model],
    prompts: Path | str | Sequence[Path | str],
    *,
    chat: bool = False,
    max_new_tokens: int = 48,
    limit: int | None = None,
    scoring: Scoring | None = None,
    bars: Bars = bars,
) -> SideBySide:
    """Return what models answer to the same prompts, greedily, side by side.

    Args:
        models: As `fuse` takes them.
        prompts: A file whose rows have a `prompt`; or a list of texts, in which a `Path` is a file.
        chat: Put each as a user's message into the model's chat template; rows that are chats are so anyway.
        max_new_tokens: Longest answer.
        limit: Take the first prompts of a file only.
        bars: Opens a bar for each model.

    Raises:
        DataError: There is nothing to ask, or a row has no prompt.
        SculptError: A model does not write, or cannot read a prompt.
    """
    rows: list[Row] = []
    for one in [Path(prompts)] if isinstance(prompts, (str, Path)) else prompts:
        rows += read_prompts(one, limit=limit) if isinstance(one, Path) else [prompt_of(one)]
    if not rows:
        raise DataError("there are no prompts", options=["prompts"])
    rows = [as_chat(row) for row in rows] if chat else rows
    arguments = (scoring or Scoring()).arguments()
    arguments["batch_size"] = arguments["batch_size"] or AT_ONCE
    found = []
    for model in models:
        with bars(f"asking {model}", unit="prompts") as report:
            found.append(answers_of(model, rows, max_new_tokens=max_new_tokens, **arguments, progress=report))
    asked = tuple((told(row), answers) for row, answers in zip(rows, zip(*found, strict=True), strict=True))
    return SideBySide(models=tuple(map(str, models)), asked=asked)


def read_prompts(file: Path, *, limit: int | None = None) -> list[Row]:
    """Return the rows of a file that have a `prompt`: a text, or the messages of a chat.

    Raises:
        DataError: A row has none.
    """
    rows = list(open_rows(file).limited(limit))
    without = next((row for row in rows if "prompt" not in row), None)
    if without is not None:
        raise DataError(f"{without.what} has no `prompt`", hint=f"it has {without.names}")
    return rows


def prompt_of(text: str) -> Row:
    """Return the row of a prompt that is typed."""
    return Row({"prompt": text}, f"the prompt `{text}`", Path())


def as_chat(row: Row) -> Row:
    """Return a prompt as what a user says in a chat, if it is not one already."""
    if row.prompt_messages is not None:
        return row
    return Row({"prompt": [{"role": "user", "content": row.text("prompt")}]}, row.what, Path())


def told(row: Row) -> str:
    """Return a prompt for people: its text, or what was said last."""
    messages = row.prompt_messages
    if messages is None:
        return row.text("prompt")
    content = messages[-1].get("content")
    parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content or ()]
    return " ".join(map(str, parts)).strip()


def answers_of(
    model: Asked,
    prompts: Sequence[Row],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    batch_size: int = AT_ONCE,
    device: str = "auto",
    dtype: str = "auto",
    memory_bytes: int | None = None,
    progress: Progress = silent,
) -> list[str]:
    """Return what a model answers to each prompt, greedily.

    Args:
        device, dtype, memory_bytes: As for `load_model`.

    Raises:
        SculptError: The model does not write, or cannot read a prompt.
    """
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        progress(done, len(prompts), "")

    with load_model(model, device=device, dtype=dtype, memory_bytes=memory_bytes) as live:
        encoder = Encoder(
            live.path,
            live.model,
            max_length=MAX_PROMPT,
            options=RowOptions(unknown_fields="ignore"),
            for_scores=True,
            in_suite=True,
        )
        return generate(
            live,
            [encoder.prompt(row, room=max_new_tokens) for row in prompts],
            max_new_tokens=max_new_tokens,
            stop=stop,
            batch_size=batch_size,
            advance=advance,
        )
