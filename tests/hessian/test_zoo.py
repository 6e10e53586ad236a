"""Every architecture, tiny: its statistics against an oracle, its batches against single samples, what is made of it.

All of them take minutes and are run by `make zoo`; those that the others resemble are run with every test.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sculpt
import torch
from safetensors.torch import load_file
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.arithmetic.row_layout import row_layout
from sculpt.hessian import CalibrationOptions, DiagonalHessian, calibrate
from sculpt.hessian.session import Session

from . import oracle, zoo, zoo_table


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


class Settled:
    """An animal on disk, and what was found of it."""

    def __init__(self, animal: zoo.Animal, folder: Path) -> None:
        self.animal, self.folder = animal, folder
        self.model, self.data = zoo.settle(animal, folder)
        self.tensors: dict[str, torch.Tensor] = {}
        for file in sorted(self.model.glob("model*.safetensors")):
            self.tensors |= load_file(file)

    def load(self, folder: Path) -> Any:
        """Return a model as transformers loads it; none of its weights may be made up."""
        cls = self.animal.class_
        model, info = cls.from_pretrained(
            folder, dtype=torch.float32, experts_implementation="eager", output_loading_info=True
        )
        assert not info["missing_keys"], info["missing_keys"]
        model.config.use_cache = False
        for parameter in model.parameters():  # mapped from the file, where it may lie crooked, which moves last bits
            parameter.data = parameter.data.clone()
        return model.eval()

    @cached_property
    def whole(self) -> Any:
        return self.load(self.model)

    @cached_property
    def measured(self) -> tuple[Session, dict[str, Curvature], list[tuple[Any, Any]]]:
        """The statistics, full matrices and all, and what the model gave while they were measured."""
        options = CalibrationOptions(data=self.data, full=("*",), batch_size=1)
        found: dict[str, Curvature] = {}
        given: list[tuple[Any, Any]] = []
        with Session(self.model, options) as session:
            forward = session.model.forward

            def noted(**inputs: Any) -> Any:
                given.append((inputs, forward(**inputs)))
                return given[-1][1]

            session.model.forward = noted
            for block in session.blocks(may_return=True):
                found |= block
        return session, found, given

    @cached_property
    def expected(self) -> oracle.Found:
        session, *_ = self.measured
        return oracle.brute_force(self.whole, [sample.inputs for sample in session.samples], self.model)


def _params() -> Iterator[Any]:
    for name in zoo_table.ARCHITECTURES:
        kept = () if name in zoo_table.QUICK else (pytest.mark.zoo,)
        yield pytest.param(name, marks=kept)


@pytest.fixture(scope="module", params=_params())
def settled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Settled:
    return Settled(zoo_table.ARCHITECTURES[request.param], tmp_path_factory.mktemp(request.param))


def test_the_measured_forward_is_transformers_own_to_the_bit(settled: Settled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sculpt.hessian.session.final_parameter", lambda *_: None)  # the forward goes to its end
    _, _, given = settled.measured
    assert given
    for inputs, ours in given:
        with torch.no_grad():
            theirs = settled.whole(**inputs)
        pairs = list(zip(tensors_in(ours), tensors_in(theirs), strict=True))
        assert pairs
        for own, other in pairs:
            assert torch.isfinite(own).all()
            assert torch.equal(own, other)


def test_statistics_are_those_of_functions_watched_in_the_whole_model(settled: Settled) -> None:
    session, found, _ = settled.measured
    why_missing = session.collector.why_missing(found)
    assert any(not np.isnan(sums).all() for sums in settled.expected.sums.values())
    for name, sums in settled.expected.sums.items():
        if np.isnan(sums).all():
            continue
        assert name in found, (name, why_missing[name])
        dense = sum((np.broadcast_to(term, sums.shape) for term in found[name].terms), np.zeros(sums.shape))
        np.testing.assert_allclose(dense, np.nan_to_num(sums), rtol=1e-5, atol=1e-9, err_msg=name)
    used = {name: why for name, why in why_missing.items() if why.startswith("used by")}
    assert {name: why for name, why in used.items() if not name.endswith(settled.animal.without)} == {}


def test_full_matrices_give_the_products_of_outputs_and_inputs(settled: Settled) -> None:
    """`W·Σxxᵀ` is Σyxᵀ, which needs to know neither inputs nor layout."""
    _, found, _ = settled.measured
    compared = 0
    for name, products in settled.expected.products.items():
        gram = found[name].gram if name in found else None
        if gram is None or np.isnan(products).any():
            continue
        weight = settled.tensors[name].double().numpy()
        layout = row_layout(name, weight.shape, found[name])
        grams = gram.astype(np.float64) if gram.ndim == 3 else gram[None].astype(np.float64)
        ours = layout.join(np.einsum("sij,sjk->sik", layout.split(weight.reshape(-1)), grams))
        scale = np.abs(products).max()
        np.testing.assert_allclose(ours.reshape(weight.shape), products, rtol=1e-4, atol=1e-5 * scale, err_msg=name)
        compared += 1
    assert compared


def test_every_tensor_is_read_at_most_once(settled: Settled) -> None:
    session, *_ = settled.measured
    assert set(session.weights.reads.values()) <= ({1, 2} if session.collector.returned_to() else {1})


def test_a_batch_of_eight_gives_the_statistics_of_single_samples(settled: Settled) -> None:
    _, found, _ = settled.measured
    batched = calibrate(settled.model, data=settled.data, batch_size=8)
    assert set(batched) == set(found)
    for name, curvature in found.items():
        assert curvature.num_tokens == batched[name].num_tokens, name
        for own, other in zip(curvature.terms, batched[name].terms, strict=True):
            np.testing.assert_allclose(other, own, rtol=1e-5, atol=1e-6 * own.max(), err_msg=name)


def test_what_is_fused_and_protected_loads(settled: Settled, tmp_path: Path) -> None:
    base, general = tmp_path / "base", tmp_path / "general.jsonl"
    generator = torch.Generator().manual_seed(9)
    model = settled.load(settled.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(base)
    zoo.write_rows(settled.animal, general, num_rows=4, seed=7)
    session, found, _ = settled.measured
    hessian = DiagonalHessian(curvatures=found, provenance=session.provenance())
    for name, given in {"fused": {}, "protected": {"protect": calibrate(base, data=general, full=["*"])}}.items():
        manifest = sculpt.fuse(base, settled.model, output=tmp_path / name, hessian=hessian, **given)
        assert manifest.fused
        loaded = settled.load(tmp_path / name)
        assert all(torch.isfinite(parameter).all() for parameter in loaded.parameters())


@pytest.mark.parametrize("name", ["llama", "mixtral", "mamba", "clip", "whisper"])
def test_float64_runs_the_same_model(name: str, tmp_path: Path) -> None:
    """There a cast to float64 gives the tensor itself, and a sum that wrote into it would change what is computed."""
    model, data = zoo.settle(zoo.ALL[name], tmp_path)
    narrow, wide = (calibrate(model, data=data, dtype=dtype) for dtype in ("float32", "float64"))
    for tensor, curvature in narrow.items():
        for own, other in zip(curvature.terms, wide[tensor].terms, strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-4, err_msg=tensor)
