"""What models answer to the same prompts: the quickest look at what a fine-tune forgot and a repair gave back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data.encoding import Encoder
from ..data.row import Row
from ..data.rows import open_rows
from ..fusion.errors import DataError
from ..fusion.progress import Progress, silent
from ..fusion.rows import RowOptions
from ..live.model import load_model
from ..predict.generation import generate

MAX_PROMPT = 1024  # tokens


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
    model: Path,
    prompts: Sequence[Row],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    batch_size: int = 8,
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
