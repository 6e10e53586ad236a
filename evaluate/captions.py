"""Captions and how they are scored: CIDEr, by the COCO caption library."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ..data.row import Row
from ..fusion.errors import ModelError, installs
from .job import Job, Scored
from .suite import Caption

Cider = Callable[[Sequence[str], Sequence[Sequence[str]]], float]


def cider() -> Cider:
    """Return the corpus CIDEr (Vedantam et al., CVPR 2015) of captions against references.

    COCO's own tokenizer needs Java; words are split here by what it does: lower case, punctuation left out.

    Raises:
        ModelError: The library is not installed.
    """
    try:
        from pycocoevalcap.cider.cider import Cider as Library  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ModelError("`scorer: caption` needs pycocoevalcap", hint=installs("captions")) from error

    def score(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        given = {number: [_words(caption)] for number, caption in enumerate(captions)}
        wanted = {number: [_words(text) for text in texts] for number, texts in enumerate(references)}
        return float(Library().compute_score(wanted, given)[0])

    return score


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower()))


def write_captions(task: Caption, job: Job, rows: Sequence[Row]) -> list[str]:
    """Return a caption for each row: of its `image`, led by its `prompt` where it has one, or of its `prompt` alone."""
    # Pictures are read one by one, as all of them together may not fit.
    groups = [[row] for row in rows] if rows and rows[0].media else [rows]
    return [
        text
        for group in groups
        for text in job.written(task, [job.encoder.prompt(row, room=task.max_new_tokens) for row in group])
    ]


def caption(task: Caption, job: Job) -> Scored:
    """Write a caption to `prompt`, or to `image`, and compare it with `references`."""
    rows = list(job.rows)
    references = [row.texts("references") for row in rows]
    score = cider()  # refused before the long part starts where its library is missing
    return Scored(score=100 * score(write_captions(task, job, rows), references), num_rows=len(rows))
