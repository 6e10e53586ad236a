"""Tasks of lm-evaluation-harness, where that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..fusion.errors import DataError, ModelError, first_line, installs
from ..live.model import LiveModel
from .job import Scored
from .suite import Harness


def score_by_harness(task: Harness, model: LiveModel, *, batch_size: int, folder: Path) -> Scored:
    """Return what lm-evaluation-harness makes of the live model on one of its tasks.

    Raises:
        ModelError: It is not installed, or cannot run the model.
        DataError: It has no such task or metric.
    """
    try:
        import lm_eval  # pyright: ignore[reportMissingImports]
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ModelError("`scorer: lm-eval` needs lm-evaluation-harness", hint=installs("lm-eval")) from error
    if model.has_classes:
        raise ModelError(f"lm-evaluation-harness cannot run `{type(model.model).__name__}`")
    wrapped = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=batch_size)
    try:
        results: Any = lm_eval.simple_evaluate(
            model=wrapped,
            tasks=[task.task],
            num_fewshot=task.num_fewshot,
            limit=task.limit,
            bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(folder / task.include) if task.include else None),
        )
    except KeyError as error:
        raise DataError(f"lm-evaluation-harness has no task `{task.task}`") from error
    except Exception as error:  # its tasks, their data sets and their code raise anything
        raise DataError(
            f"lm-evaluation-harness fails on `{task.task}`: {first_line(error)}",
            hint="the data of a task must be downloaded first: sculpt downloads none",
        ) from error
    found = results["results"][task.task]
    metrics = {name.partition(",")[0]: value for name, value in found.items() if isinstance(value, float)}
    if task.metric not in metrics:
        known = ", ".join(f"`{name}`" for name in metrics if not name.endswith("_stderr"))
        raise DataError(f"`{task.task}` of lm-evaluation-harness has no `{task.metric}`", hint=f"it has {known}")
    return Scored(
        score=100 * metrics[task.metric],
        num_rows=sum(counts["effective"] for counts in results["n-samples"].values()),
        figures={name: value for name, value in metrics.items() if not name.endswith("_stderr")},
    )
