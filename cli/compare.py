"""`sculpt compare`: what models answer to the same prompts, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..evaluate.options import Scoring
from .flags import FlagGroup, with_options
from .options import AsJson, refuse_missing

if TYPE_CHECKING:
    from ..evaluate.answers import SideBySide

HELP = """Show the answers of several models to the same prompts, side by side: for example base, fine-tune and repair.

Answers are greedy. A prompt is a text to continue, or with `--chat` a user's message. A `prompt` that is a list of
messages is always a chat. With `--suite` this is `sculpt benchmark`: it compares methods by their scores.

**Examples**

    sculpt compare base/ sft/ sft-repaired/ --prompts prompts.jsonl

    sculpt compare base/ sft/ sft-repaired/ --prompt "The capital of France is"

    sculpt compare base/ sft/ --prompts prompts.jsonl --chat --max-new-tokens 200 --json > answers.json

    sculpt compare base/ sft/ --suite suite.yaml --methods ties,dare,tailor,adadare
"""


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How models answer.

    Attributes:
        chat: Put each prompt as a user's message into the model's chat template.
        max_new_tokens: Longest answer.
        limit: Take only this many prompts of the file.
    """

    chat: bool = False
    max_new_tokens: int = 48
    limit: int | None = None


def compare_command(
    models: Annotated[list[Path], typer.Argument(help="Checkpoints, such as base, fine-tune and repair.")],
    prompts: Annotated[Path | None, typer.Option("--prompts", help="A file whose rows have a `prompt`.")] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; repeatable.")] = None,
    json: AsJson = False,
    *,
    options: AnswerOptions,
    scoring: Scoring,
) -> None:
    """Ask every model, and print the answers."""
    from ..fusion.checkpoint import find_model
    from ..fusion.errors import DataError
    from .console import print_json, quiet_libraries
    from .progress import progress_bar

    if prompts is None and not prompt:
        raise DataError("there are no prompts", hint="give `--prompts FILE` or `--prompt TEXT`")
    refuse_missing(models, [] if prompts is None else [prompts])
    names = [find_model(model).name for model in models]
    quiet_libraries()
    from ..evaluate.answers import compare

    found = compare(
        models,
        [*(prompt or ()), *([] if prompts is None else [prompts])],
        chat=options.chat,
        max_new_tokens=options.max_new_tokens,
        limit=options.limit,
        scoring=scoring,
        bars=progress_bar,
    )
    print_json(found.as_json()) if json else show(names, found)


def show(names: list[str], found: SideBySide) -> None:
    """Print each prompt, and below it what every model answers."""
    from .console import out, paragraphs

    for text, answers in found.asked:
        out(text)
        paragraphs(list(zip(names, answers, strict=True)))


def register(app: typer.Typer) -> None:
    """Add `compare`."""
    groups = {
        "options": FlagGroup(of=AnswerOptions, panel="SideBySide"),
        "scoring": FlagGroup(of=Scoring, panel="Run"),
    }
    app.command("compare", help=HELP)(with_options(**groups)(compare_command))
