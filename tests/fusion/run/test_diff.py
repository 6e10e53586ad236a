"""What two models differ by, against NumPy on the whole tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sculpt


def test_complex_numbers_differ_by_their_imaginary_parts_too(make_checkpoint: Callable[..., Path]) -> None:
    first = np.array([3 + 4j, 1j, 2], np.complex64)
    second = first + np.array([0, 2j, 1 + 1j], np.complex64)
    (found,) = sculpt.diff(make_checkpoint("a", {"c": first}), make_checkpoint("b", {"c": second})).tensors
    assert found.changed == pytest.approx(2 / 3)
    assert found.largest == 2
    assert found.relative_norm == pytest.approx(np.linalg.norm(second - first) / np.linalg.norm(first))
