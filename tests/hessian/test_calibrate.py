"""The streamed statistics of every architecture against hooks on the whole model in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from sculpt.hessian import CalibrationOptions, DiagonalHessian, calibrate
from sculpt.hessian.session import Session

from . import oracle, zoo  # noqa: TID251 (the tests' own folder)


def dense(hessian: DiagonalHessian, name: str, shape: tuple[int, ...]) -> np.ndarray:
    return sum((np.broadcast_to(term, shape) for term in hessian[name].terms), np.zeros(shape))


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, "np") as opened:
            found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return found


def load_whole(animal: zoo.Animal, folder: Path) -> Any:
    return getattr(transformers, animal.model).from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", zoo.ALL)
def test_statistics_are_those_of_hooks_on_the_whole_model(name: str, tmp_path: Path) -> None:
    animal = zoo.ALL[name]
    folder, data = zoo.settle(animal, tmp_path)
    hessian = calibrate(folder, data=data)
    with Session(folder, CalibrationOptions(data=data)) as session:
        inputs = [sample.inputs for sample in session.samples]
    model = load_whole(animal, folder)
    expected = oracle.by_values(model, oracle.brute_force(model, inputs), folder)
    shapes = shapes_of(folder)
    for tensor, sums in expected.items():
        if np.isnan(sums).all():
            continue
        assert tensor in hessian, (tensor, hessian.why_missing[tensor])
        np.testing.assert_allclose(dense(hessian, tensor, shapes[tensor]), sums, rtol=1e-5, err_msg=tensor)
    missing = {tensor for tensor in hessian.why_missing if not tensor.endswith(animal.without or ("nothing",))}
    assert not missing, {tensor: hessian.why_missing[tensor] for tensor in missing}


@pytest.mark.parametrize("name", zoo.ALL)
def test_every_tensor_is_read_at_most_once(name: str, tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.ALL[name], tmp_path)
    with Session(folder, CalibrationOptions(data=data)) as session:
        for _ in session.blocks():
            pass
        assert set(session.weights.reads.values()) == {1}
        assert session.weights.bytes_read <= session.checkpoint.nbytes


@pytest.mark.parametrize("name", zoo.TEXT)
def test_batches_with_padding_give_the_statistics_of_single_samples(name: str, tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT[name], tmp_path)
    single, batched = calibrate(folder, data=data), calibrate(folder, data=data, batch_size=3)
    assert set(single) == set(batched)
    for tensor in single:
        assert single[tensor].num_tokens == batched[tensor].num_tokens, tensor
        for own, other in zip(single[tensor].terms, batched[tensor].terms, strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-4, err_msg=tensor)


def test_token_counts_are_the_rows_of_the_data(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    rows = [json.loads(line)["input_ids"] for line in data.read_text().splitlines()]
    hessian = calibrate(folder, data=data)
    assert hessian.provenance.num_tokens == sum(map(len, rows))
    assert {curvature.num_tokens for curvature in hessian.values()} == {sum(map(len, rows))}
    counts = hessian["model.embed_tokens.weight"].terms[0][:, 0]
    assert np.array_equal(counts, np.bincount(np.concatenate(rows), minlength=zoo.VOCAB))
