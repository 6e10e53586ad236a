"""What a calibration counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from sculpt.hessian import calibrate

from . import zoo


def test_token_counts_are_the_rows_of_the_data(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    rows = [json.loads(line)["input_ids"] for line in data.read_text().splitlines()]
    hessian = calibrate(folder, data=data)
    assert hessian.provenance.num_tokens == sum(map(len, rows))
    assert {curvature.num_tokens for curvature in hessian.values()} == {sum(map(len, rows))}
    counts = hessian["model.embed_tokens.weight"].terms[0][:, 0]
    assert np.array_equal(counts, np.bincount(np.concatenate(rows), minlength=zoo.VOCAB))
