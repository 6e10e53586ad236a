"""One fuse by NumPy, by kernels and by torch, in any tiles and on any number of threads: the same bits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.arithmetic.passes import Map, Pass
from sculpt.fusion.arithmetic.random import Key
from sculpt.fusion.arithmetic.sums import BLOCK
from sculpt.fusion.arithmetic.tile import RawTile
from sculpt.fusion.methods import AdaDare, Dare, Method, TaskArithmetic, Ties
from sculpt.fusion.run.backend import (
    KERNEL_TILE,
    MIN_KERNEL_ELEMENTS,
    Backend,
    KernelBackend,
    NumpyBackend,
    TorchBackend,
    _device_kernels,
    pick_backend,
)
from sculpt.fusion.run.fuse import execute
from sculpt.fusion.run.prepared import prepare
from sculpt.fusion.run.settings import Settings
from sculpt.fusion.transforms.scale import add_scaled

METHODS = [
    AdaDare(sparsity=0.7),
    AdaDare(sparsity=0.5, allocation="exact", gamma=1.0),
    AdaDare(sparsity=0.7, scope="model"),
    Dare(sparsity=0.5),
    TaskArithmetic(scale=0.3),
    Ties(density=0.3),
    Ties(density=0.3, scope="model"),
]
Make = Callable[..., Path]


def write(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    """Write a single-file checkpoint, whatever the dtypes."""
    import json

    codes = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
    entries, data = {}, b""
    for name, array in tensors.items():
        entries[name] = {
            "dtype": codes[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + array.nbytes],
        }
        data += array.tobytes()
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Tensors of all float dtypes, one of several tiles, one that begins amid a page, many tiny ones."""
    rng, base, tuned = np.random.default_rng(0), {}, {}
    shapes = {"wide": (16,), "big": (300, 2000), "odd": (7, 33), "next": (150, 1100)}
    shapes |= {f"small.{k}": (5, k + 1) for k in range(40)}
    dtypes = {"wide": np.float64, "odd": np.float32, "next": np.float16}
    for name, shape in shapes.items():
        dtype = np.dtype(dtypes.get(name, ml_dtypes.bfloat16))
        base[name] = (rng.standard_normal(shape) * 0.02).astype(dtype)
        tuned[name] = (base[name].astype(np.float64) + rng.standard_normal(shape) * 0.001).astype(dtype)
    folder = tmp_path_factory.mktemp("pair")
    return write(folder / "base", base), write(folder / "tuned", tuned)


CURVATURE = {"big": (None, Curvature(terms=(np.random.default_rng(1).exponential(size=(1, 2000)) ** 3,), num_tokens=9))}


def fused_bytes(pair: tuple[Path, Path], output: Path, method: Method, backend: Backend) -> bytes:
    prepared = prepare(pair[0], [pair[1]], output=output, method=method, settings=Settings(seed=3))
    execute(prepared, curvature=CURVATURE if method.uses_curvature else None, backend=backend)
    return (output / "model.safetensors").read_bytes()


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_backend_tiles_and_threads_change_no_bit(pair: tuple[Path, Path], tmp_path: Path, method: Method) -> None:
    backends = [
        NumpyBackend(tile_elements=1 << 16),
        NumpyBackend(threads=3, tile_elements=BLOCK),
        KernelBackend(threads=1),
        KernelBackend(threads=4, tile_elements=BLOCK),
        KernelBackend(threads=2, tile_elements=1 << 17),
        TorchBackend("cpu", tile_elements=1 << 16),
    ]
    found = {fused_bytes(pair, tmp_path / str(k), method, backend) for k, backend in enumerate(backends)}
    assert len(found) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_cuda_computes_the_same_bits(pair: tuple[Path, Path], tmp_path: Path, method: Method) -> None:
    backends = NumpyBackend(), TorchBackend("cuda", tile_elements=1 << 16)
    found = {fused_bytes(pair, tmp_path / str(k), method, backend) for k, backend in enumerate(backends)}
    assert len(found) == 1


def test_without_a_c_compiler_torch_computes_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _device_kernels("cuda") is None
    assert "C compiler" in caplog.text
    monkeypatch.setenv("CC", "cc")
    assert _device_kernels("cuda") is not None
    assert _device_kernels("mps") is None


def test_torch_computes_tiles_of_several_threads_apart() -> None:
    backend, rng = TorchBackend("cpu"), np.random.default_rng(0)

    def fuse(k: int) -> bool:
        base = rng.standard_normal(10_000 + 64 * k).astype(np.float32)
        tile = RawTile(start=0, base=base, tuned=(base + 1,), keys=(Key(low=k, high=k),), root=None)
        out = np.empty_like(base)
        rows = backend.run_map(tile, Map(function=add_scaled, arguments=(0.5,)), out)
        expected = np.empty_like(base)
        same = np.array_equal(rows, NumpyBackend().run_map(tile, Map(function=add_scaled, arguments=(0.5,)), expected))
        return same and np.array_equal(out, expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(fuse, range(40)))


def test_a_pass_without_a_kernel_is_joined_from_pieces() -> None:
    base = np.arange(70_000, dtype=np.float32)
    tile = RawTile(start=0, base=base, tuned=(base,), keys=(Key(low=0, high=0),), root=None)

    def rows(tile, factor):
        from sculpt.fusion.arithmetic.sums import block_sums

        return block_sums(tile.base * factor)[None]

    wanted = Pass(function=rows, arguments=(2.0,))
    assert np.array_equal(KernelBackend().run_pass(tile, wanted), NumpyBackend().run_pass(tile, wanted))


def test_few_elements_are_left_to_numpy_and_many_are_not() -> None:
    assert isinstance(pick_backend(num_elements=MIN_KERNEL_ELEMENTS - 1), NumpyBackend)
    assert isinstance(pick_backend(num_elements=MIN_KERNEL_ELEMENTS), KernelBackend)
    assert isinstance(pick_backend(), KernelBackend)


@pytest.mark.parametrize("memory", [1, 1 << 20, 1 << 24, 1 << 40])
def test_a_budget_bounds_the_tiles(memory: int) -> None:
    backend = pick_backend(threads=2, memory=memory)
    assert BLOCK <= backend.tile_elements <= KERNEL_TILE
    assert backend.tile_elements == BLOCK or backend.tile_elements * 8 * 6 <= memory
    assert backend.tile_elements % BLOCK == 0


def test_kernels_are_loaded_without_numba_once_they_have_been_compiled(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np\n"
        "from sculpt.fusion.run.backend import KernelBackend\n"
        "from sculpt.fusion.arithmetic.passes import Map\n"
        "from sculpt.fusion.transforms.scale import add_scaled\n"
        "from sculpt.fusion.arithmetic.tile import RawTile\n"
        "base = np.ones(9, np.float32)\n"
        "tile = RawTile(start=0, base=base, tuned=(base + 1,), keys=(), root=None)\n"
        "KernelBackend().run_map(tile, Map(function=add_scaled, arguments=(0.5,)), out := np.empty_like(base))\n"
        "assert (out == 1.5).all()\n"
        "print(*sorted({'numba', 'torch', 'transformers', 'scipy'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", script]
    subprocess.run(command, check=True, capture_output=True)
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert again.stdout == "\n"


def test_a_cache_that_cannot_be_written_or_is_damaged_does_no_harm(tmp_path: Path) -> None:
    script = (
        "import numpy as np\n"
        "from sculpt.fusion.kernels import budget\n"
        "from sculpt.fusion.native import _folder\n"
        "from sculpt.fusion.arithmetic.tile import RawTile\n"
        "x = np.arange(4096, dtype=np.float32)\n"
        "assert budget.l1_sums(RawTile(start=0, base=x, tuned=(x + 1,), keys=(), root=None))[0] == 4096\n"
        "for file in _folder().glob('*.o'): file.write_bytes(file.read_bytes()[:-1])\n"
    )
    for home in (tmp_path / "cache", tmp_path / "cache", tmp_path / "file"):
        if home.name == "file":
            home.write_text("not a folder")
        environment = {"PATH": "", "HOME": str(tmp_path), "XDG_CACHE_HOME": str(home)}
        subprocess.run([sys.executable, "-c", script], check=True, env=environment)
