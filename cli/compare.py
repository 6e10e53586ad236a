"""`sculpt compare`: what models answer to the same prompts, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .evaluate import ScoringOptions
from .flags import FlagGroup, with_options
from .options import AsJson, refuse_missing

HELP = """Show what models answer to the same prompts, side by side: base, fine-tune and repair, say.

Answers are greedy. A prompt is text that goes on, or with `--chat` what a user says; rows whose `prompt` is a list of
messages are chats anyway. With `--suite` it is `sculpt benchmark`: methods of
fusing a base and a fine-tune, by their scores.

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
        limit: Take the first prompts of the file only.
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
    scoring: ScoringOptions,
) -> None:
    """Ask every model, and print the answers."""
    from ..fusion.checkpoint import find_model
    from ..fusion.errors import DataError
    from .console import print_json, quiet_libraries
    from .progress import progress_bar

    if prompts is None and not prompt:
        raise DataError("there is nothing to ask", hint="`--prompts FILE` or `--prompt TEXT` says what")
    refuse_missing(models, [] if prompts is None else [prompts])
    names = [find_model(model).name for model in models]
    quiet_libraries()
    from ..evaluate.answers import answers_of, as_chat, prompt_of, read_prompts, told

    rows = [prompt_of(text) for text in prompt or ()]
    rows += read_prompts(prompts, limit=options.limit) if prompts is not None else []
    rows = [as_chat(row) for row in rows] if options.chat else rows
    arguments = scoring.arguments()
    found: list[list[str]] = []
    for model in models:
        with progress_bar(f"asking {model}", unit="prompts") as report:
            found.append(
                answers_of(
                    model,
                    rows,
                    max_new_tokens=options.max_new_tokens,
                    **{**arguments, "batch_size": arguments["batch_size"] or 8},
                    progress=report,
                )
            )
    by_prompt = [(told(row), list(answers)) for row, answers in zip(rows, zip(*found, strict=True), strict=True)]
    if json:
        asked = [{"prompt": text, "answers": answers} for text, answers in by_prompt]
        print_json({"models": [str(model) for model in models], "asked": asked})
    else:
        show(names, by_prompt)


def show(names: list[str], by_prompt: list[tuple[str, list[str]]]) -> None:
    """Print each prompt, and below it what every model answers."""
    from .console import out, paragraphs

    for text, answers in by_prompt:
        out(text)
        paragraphs(list(zip(names, answers, strict=True)))


def register(app: typer.Typer) -> None:
    """Add `compare`."""
    groups = {
        "options": FlagGroup(of=AnswerOptions, panel="Answers"),
        "scoring": FlagGroup(of=ScoringOptions, panel="Run"),
    }
    app.command("compare", help=HELP)(with_options(**groups)(compare_command))
