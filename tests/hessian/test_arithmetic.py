"""The parts against brute force: places of views, sums of squares, sums of products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sculpt.hessian.measure import moments
from sculpt.hessian.measure.gram import GramSum, LastProduct, own_rows
from sculpt.hessian.measure.placement import locate
from sculpt.hessian.measure.row_weights import RowWeights
from sculpt.hessian.measure.statistics import ParameterStatistics
from sculpt.live.conversions import num_rows

VIEWS = {
    "whole": lambda w: w,
    "transposed": lambda w: w.transpose(-1, -2),
    "one expert": lambda w: w[1],
    "one expert transposed": lambda w: w[2].T,
    "rows of an expert": lambda w: w[1][2:5],
    "one row": lambda w: w[1, 3],
    "flattened": lambda w: w.flatten(1),
    "experts flattened": lambda w: w.reshape(-1, w.shape[-1]),
    "with an axis more": lambda w: w.unsqueeze(1),
    "columns": lambda w: w[..., 1:3],
    "rows by head": lambda w: w[1].unflatten(0, (2, 3)),
    "heads first, transposed": lambda w: w[0].unflatten(0, (3, 2)).transpose(1, 2),
    "one head": lambda w: w.unflatten(1, (2, 3))[:, 1],
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_found_in_its_parameter(name: str) -> None:
    weight = torch.arange(3 * 6 * 4).reshape(3, 6, 4)
    view = VIEWS[name](weight)
    placement = locate(tuple(weight.shape), tuple(view.shape), view.stride(), view.storage_offset())
    assert placement is not None
    part = weight.reshape(placement.shape)[placement.part]
    order = [axis for run in placement.axes for axis in run]
    rest = [axis for axis in range(part.ndim) if axis not in order]
    assert torch.equal(part.permute(*order, *rest).reshape(view.shape), view)


def test_every_second_row_is_no_box() -> None:
    weight = torch.zeros(6, 4)
    view = weight[::2]
    assert locate(tuple(weight.shape), tuple(view.shape), view.stride(), view.storage_offset()) is None


def test_sums_of_parts_add_up_to_the_parameter() -> None:
    weight = torch.zeros(3, 6, 4)
    statistics = ParameterStatistics("w", weight.shape)
    expected = np.zeros((3, 6, 4))
    generator = np.random.default_rng(0)
    for expert in (0, 2, 0):
        view = weight[expert].T
        values = generator.random((4, 1))
        placement = locate(tuple(weight.shape), tuple(view.shape), view.stride(), view.storage_offset())
        assert placement is not None
        statistics.add(placement, torch.from_numpy(values), torch.ones(1, 1, dtype=torch.float64))
        expected[expert] += values.T
    terms = statistics.finish()
    assert [term.shape for term in terms.sums] == [(3, 1, 4)]
    np.testing.assert_array_equal(np.broadcast_to(terms.sums[0], expected.shape), expected)
    assert terms.counts[0].reshape(-1).tolist() == [2, 0, 1]


def test_heads_with_inputs_of_their_own_join_to_rows() -> None:
    weight = torch.zeros(6, 4)
    statistics = ParameterStatistics("w", weight.shape)
    heads = weight.unflatten(0, (2, 3)).transpose(1, 2)  # (heads, in, out)
    placement = locate((6, 4), tuple(heads.shape), heads.stride(), 0)
    assert placement is not None
    values = torch.arange(8, dtype=torch.float64).reshape(2, 4, 1)
    statistics.add(placement, values, torch.full((2, 1, 1), 5, dtype=torch.float64))
    terms = statistics.finish()
    assert [term.tolist() for term in terms.sums] == [[[0, 1, 2, 3]] * 3 + [[4, 5, 6, 7]] * 3]
    assert num_rows(terms) == 10


def test_a_part_of_the_rows_counts_its_inputs_once() -> None:
    weight = torch.zeros(6, 4)
    statistics = ParameterStatistics("w", weight.shape)
    for start, stop, value in ((0, 2, 1.0), (2, 6, 3.0)):
        view = weight[start:stop]
        placement = locate((6, 4), tuple(view.shape), view.stride(), view.storage_offset())
        assert placement is not None
        sums = torch.full((1, 4), value, dtype=torch.float64)
        statistics.add(placement, sums, torch.full((1, 1), 7, dtype=torch.float64))
    terms = statistics.finish()
    assert [term.tolist() for term in terms.sums] == [[[1.0] * 4] * 2 + [[3.0] * 4] * 4]
    assert num_rows(terms) == 14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sums_of_squares_are_float64_whatever_the_dtype(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = (torch.randn(1000, 7, generator=torch.Generator().manual_seed(0)) * 30).to(dtype)
    expected = x.double().square().sum(0)
    assert torch.allclose(moments.column_squares(x), expected, rtol=1e-14)
    monkeypatch.setattr(moments, "CHUNK_ELEMENTS", 50)
    assert torch.allclose(moments.column_squares(x), expected, rtol=1e-14)
    weights = torch.arange(1000) % 3
    total = GramSum(7, LastProduct())
    for piece, own in zip(x.split(90), weights.split(90), strict=True):
        total.add(own_rows(piece, own))
        assert len(own_rows(piece, own)) == (own != 0).sum()  # padding is not multiplied
    wanted = (x.double() * weights.unsqueeze(1)).T @ x.double()
    np.testing.assert_allclose(total.total(), wanted, rtol=1e-6, atol=1e-6 * float(wanted.diagonal().mean()))


def test_no_sum_writes_into_what_it_is_given() -> None:
    """In float64, where a cast to float64 gives the tensor itself."""
    x = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows, weights = x.reshape(6, 6), torch.rand(6, dtype=torch.float64)
    inputs = [x, rows, weights]
    before = [tensor.clone() for tensor in inputs]
    moments.column_squares(rows)
    moments.column_squares(rows, weights)
    moments.grouped_column_squares(rows, [2, 6])
    moments.elementwise_squares(x, (6,), weights.reshape(2, 3, 1))
    moments.row_counts(torch.arange(6), 6, weights)
    options = {"stride": [1], "padding": [1], "dilation": [1]}
    moments.patch_squares(x, (2,), out_sizes=[7], **options)
    moments.patch_rows(x, (2,), **options)
    total = GramSum(6, LastProduct())
    for own in (None, weights):
        total.add(own_rows(rows, own))
    total.total()
    assert all(map(torch.equal, inputs, before))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.integers(0, 99)
)
def test_patches_are_those_of_unfold(
    batch: int, kernel: int, stride: int, padding: int, dilation: int, seed: int
) -> None:
    x = torch.randn(batch, 3, 9, 8, generator=torch.Generator().manual_seed(seed))
    unfolded = torch.nn.functional.unfold(x, kernel, dilation, padding, stride).double()
    expected = unfolded.square().sum((0, 2)).reshape(3, kernel, kernel)
    out = [(size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for size in (9, 8)]
    found = moments.patch_squares(
        x, (kernel,) * 2, stride=[stride] * 2, padding=[padding] * 2, dilation=[dilation] * 2, out_sizes=out
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_rows_of_a_batch_count_as_often_as_they_are_tokens() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    rows = RowWeights([mask], 2)
    assert rows.of_rows(10, shared=False).tolist() == mask.reshape(-1).tolist()  # pyright: ignore[reportOptionalMemberAccess]
    assert rows.of_rows(5, shared=True).tolist() == [2, 1, 1, 0, 0]  # pyright: ignore[reportOptionalMemberAccess]
    assert rows.of_rows(5, shared=False) is None
    assert rows.of_rows(3, shared=True).tolist() == [2, 2, 2]  # pyright: ignore[reportOptionalMemberAccess]
    assert rows.of_tensor((2, 5, 7), shared=False).shape == (2, 5, 1)  # pyright: ignore[reportOptionalMemberAccess]
    assert rows.of_tensor((2, 4, 5, 7), shared=False).shape == (2, 1, 5, 1)  # pyright: ignore[reportOptionalMemberAccess]
    pairs = rows.of_indices((5, 5), shared=True)
    assert isinstance(pairs, torch.Tensor)
    assert float(pairs.sum()) == 3 * 3 + 1 * 1


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.integers(0, 99)
)
def test_patch_rows_are_those_of_unfold(
    batch: int, kernel: int, stride: int, padding: int, dilation: int, seed: int
) -> None:
    x = torch.randn(batch, 3, 9, 8, generator=torch.Generator().manual_seed(seed))
    unfolded = torch.nn.functional.unfold(x, kernel, dilation, padding, stride)
    sizes = [(k,) * 2 for k in (kernel, stride, padding, dilation)]
    rows = moments.patch_rows(x, sizes[0], stride=sizes[1], padding=sizes[2], dilation=sizes[3])
    assert torch.equal(rows.flatten(1), unfolded.transpose(1, 2).reshape(-1, unfolded.shape[1]))
