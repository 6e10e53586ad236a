"""Numbers of elements: those of a tied embedding, which differ along rows and along columns, are never all there."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.arithmetic.group import Group
from sculpt.fusion.arithmetic.tile import root_curvature
from sculpt.fusion.arithmetic.two_sided import Protection, fractions

TERMS = {
    "tied": ((50, 13), [(50, 1), (1, 13)]),
    "experts": ((4, 30, 17), [(4, 1, 17), (1, 30, 1)]),
    "three uses": ((3, 5, 7), [(3, 1, 1), (1, 5, 1), (1, 1, 7)]),
    "one row at a time": ((2, 70000), [(2, 1), (1, 70000)]),
}


def curvature(shapes: list[tuple[int, ...]], seed: int = 0) -> Curvature:
    rng = np.random.default_rng(seed)
    return Curvature(terms=tuple(rng.random(shape) * 10 for shape in shapes), num_tokens=7)


@pytest.mark.parametrize("case", TERMS)
def test_any_run_of_elements_has_the_numbers_that_all_elements_have(case: str) -> None:
    shape, terms = TERMS[case]
    found = curvature(terms)
    total = sum(np.broadcast_to(term, shape) for term in found.terms)
    expected = np.sqrt(2 * np.asarray(total) + 1).astype("f4").reshape(-1)
    root = root_curvature("w", found, shape)
    for start, count in ((0, expected.size), (11, 40), (expected.size - 9, 9), (shape[-1] - 1, 2)):
        np.testing.assert_array_equal(root.expand(start, count), expected[start : start + count])


def test_fractions_of_a_tied_embedding_are_those_of_each_of_its_elements() -> None:
    shape, terms = TERMS["tied"]
    general, target = curvature(terms, 1), curvature(terms[1:], 2)
    group = Group(name="w", shape=shape, curvatures=(general, target))
    [found] = fractions(group, [0], Protection(weight=0.7, ridge=0.01), [1.0])
    g, a = (np.broadcast_to(sum(side.terms[1:], side.terms[0]), shape) / 7 for side in (general, target))
    g, a = g + 0.01 * g.mean(), a + 0.01 * a.mean()
    np.testing.assert_allclose(found.expand(0, 650), (a / (a + 0.7 * g)).reshape(-1), rtol=1e-6)


def test_the_curvature_of_a_tied_embedding_takes_no_memory_by_the_element() -> None:
    found = curvature([(20_000, 1), (1, 500)])
    tracemalloc.start()
    root = root_curvature("w", found, (20_000, 500))
    root.expand(123_456, 100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000  # all elements take 40 MB in float32 alone
