"""Each device kernel gives the bits of the definition that it stands in for, by one launch.

On CUDA where there is such; else Triton's interpreter runs them on the CPU, in a process of its own, as Triton must be
told of that before anything imports it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from sculpt.fusion.arithmetic.passes import Map, Pass
from sculpt.fusion.arithmetic.per_element import Repeated
from sculpt.fusion.methods import adadare, dare
from sculpt.fusion.run.backend import NumpyBackend, TorchBackend
from sculpt.fusion.transforms.scale import add_scaled
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from .tiles import BFLOAT16, DTYPES, FLOAT16, FLOAT32, LAYOUTS, Dtypes, make_tile, same_bits

MAPS = [
    Map(function=adadare.drop_and_rescale, arguments=(float(np.float32(30.0)), 0.5)),
    Map(function=adadare.drop_and_rescale, arguments=(float(np.float32(90.0)), 1.0)),
    Map(function=dare.drop_and_rescale, arguments=(0.1, 0.7)),
    *(Map(function=add_scaled, arguments=(strength,)) for strength in (0.0, 0.3, 1.0)),
]
PASSES = [
    Pass(function=adadare.score_sums),
    Pass(function=adadare.clipped_sums, arguments=(float(np.float32(90.0)),)),
]
MOVES = {"copy_", "_to_copy", "empty", "new_empty", "new_ones", "view", "detach", "slice", "alias", "lift_fresh"}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The interpreter takes a second for a kernel on two blocks: it is given less.
CASES = (
    [
        pytest.param(*dtypes.values, *layout.values, 100_000, id=f"{dtypes.id}-{layout.id}")
        for dtypes, layout in product(DTYPES, LAYOUTS)
    ]
    if torch.cuda.is_available()
    else [
        pytest.param((BFLOAT16,) * 3, (100, 2048), 4113, id="bfloat16-columns"),
        pytest.param((BFLOAT16, FLOAT16, FLOAT32), (3, 37), 700, id="mixed-ragged"),
        pytest.param((FLOAT16, FLOAT32, FLOAT16), (0, 37), 700, id="mixed-tied"),
    ]
)
on_a_device = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="needs CUDA or Triton's interpreter"
)


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="the tests below run")
def test_device_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__]
    found = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout
    assert f"{len(CASES) + 1} passed" in found.stdout


@pytest.fixture(scope="module")
def backend() -> TorchBackend:
    return TorchBackend("cpu" if INTERPRETED else "cuda")


@on_a_device
@pytest.mark.parametrize(("dtypes", "layout", "size"), CASES)
def test_device_kernels_give_the_bits_of_their_definitions(
    backend: TorchBackend, dtypes: Dtypes, layout: tuple[int, int] | None, size: int
) -> None:
    tile, definitions = make_tile(dtypes, size, layout), NumpyBackend()
    for wanted in PASSES:
        assert same_bits(backend.run_pass(tile, wanted), definitions.run_pass(tile, wanted))
    for wanted in MAPS:
        expected, found = np.empty(size, dtypes[2]), np.empty(size, dtypes[2])
        rows = definitions.run_map(tile, wanted, expected)
        assert same_bits(backend.run_map(tile, wanted, found), rows)
        assert same_bits(found, expected)


class Operations(TorchDispatchMode):
    """Counts what torch computes beside the kernel; copies and views are no arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.computed: list[str] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in MOVES:
            self.computed.append(name)
        return func(*args, **(kwargs or {}))


@on_a_device
def test_torch_computes_nothing_beside_the_kernel(backend: TorchBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    from sculpt.fusion.kernels.accelerator import launch

    launches, sent = [], []
    original = launch.launched

    def counted(kernel: Any, tile: Any, out: Any, num_rows: int, arguments: Any) -> Any:
        launches.append(kernel)
        sent.extend(t.nbytes for t in (tile.base, *tile.tuned, tile.root[0], out) if t is not None)
        with _disable_current_modes():  # the interpreter computes with torch itself
            return original(kernel, tile, out, num_rows, arguments)

    for module in ("adadare", "dare", "task_arithmetic"):
        monkeypatch.setattr(f"sculpt.fusion.kernels.accelerator.{module}.launched", counted)
    tile, out = make_tile((BFLOAT16,) * 3, 600, (64, 1)), np.empty(600, BFLOAT16)
    with Operations() as operations:
        for wanted in PASSES:
            backend.run_pass(tile, wanted)
        for wanted in MAPS:
            backend.run_map(tile, wanted, out)
    assert operations.computed == []
    assert len(launches) == len(PASSES) + len(MAPS)
    assert tile.root is not None
    assert isinstance(tile.root, Repeated)
    inputs = 4 * 600 + tile.root.values.nbytes
    assert sum(sent) <= inputs * len(PASSES) + (inputs + 2 * 600) * len(MAPS)  # each element once, stored as it is
