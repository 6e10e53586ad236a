"""Statistics on a device that has no float64: accumulated where there is some, the model on the device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import sculpt
from sculpt.fusion.run.settings import Settings
from sculpt.hessian import calibrate
from sculpt.hessian.options import CalibrationOptions

from . import zoo

Device = Callable[..., AbstractContextManager[str]]


@pytest.mark.parametrize(
    ("kind", "batch_size", "has_float64"),
    [("llama", 1, False), ("mamba", 1, False), ("llava", 3, False), ("llama", 3, True)],
)
def test_statistics_are_those_of_the_cpu(
    kind: str, batch_size: int, has_float64: bool, device_without_float64: Device, tmp_path: Path
) -> None:
    folder, data = zoo.settle(zoo.ALL[kind], tmp_path)
    options = CalibrationOptions(data=data, batch_size=batch_size, dtype="float32", full=("*",))
    wanted = calibrate(folder, options, output=tmp_path / "cpu.safetensors", device="cpu")
    with device_without_float64(but_has_it=has_float64) as device:
        found = calibrate(folder, options, output=tmp_path / "device.safetensors", device=device)
    assert list(found) == list(wanted)
    for name in wanted:
        for ours, theirs in zip(found[name].terms, wanted[name].terms, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7, err_msg=name)
        ours, theirs = found[name].gram, wanted[name].gram
        if theirs is not None:
            assert ours is not None
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_protected_fuse_is_that_of_the_cpu(dtype: type, device_without_float64: Device) -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((12, 8)).astype(dtype)
    tuned = base + rng.standard_normal((12, 8)).astype(dtype) * 0.1
    seen = [rng.standard_normal((40, 8)) for _ in range(2)]
    own, general = (sculpt.Curvature(terms=((x * x).sum(0)[None],), num_tokens=40, gram=x.T @ x) for x in seen)

    def fused(device: str) -> np.ndarray:
        settings = Settings(device=device, protection=sculpt.Protection())
        return sculpt.apply(sculpt.TaskArithmetic(), base, tuned, curvature=own, general=general, settings=settings)

    wanted = fused("cpu")
    with device_without_float64() as device:
        found = fused(device)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
