"""A calibration that is killed goes on from its last finished block."""

from __future__ import annotations

from pathlib import Path

import pytest
from sculpt.fusion.errors import OutputError
from sculpt.hessian import calibrate

from . import zoo  # noqa: TID251 (the tests' own folder)


class Killed(BaseException):
    pass


def kill_after(units: int) -> object:
    """Return a progress callback that ends the run when so many units are done."""

    def progress(done: int, total: int, what: str) -> None:
        if done == units:
            raise Killed

    return progress


ANIMALS = ["llama-tied", "gemma", "t5", "mixtral", "mamba", "llava", "whisper", "instruct-blip"]


@pytest.mark.parametrize("full", [(), ("*",)], ids=["diagonal", "full"])
@pytest.mark.parametrize("name", ANIMALS)
def test_a_killed_run_gives_the_same_bytes(name: str, full: tuple[str, ...], tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.ALL[name], tmp_path)
    whole = tmp_path / "whole.safetensors"
    seen: list[int] = []
    calibrate(folder, data=data, output=whole, full=full, progress=lambda _, total, __: seen.append(total))
    target = tmp_path / "out.safetensors"
    for units in range(1, seen[-1] - 1):
        with pytest.raises(Killed):
            calibrate(folder, data=data, output=target, full=full, progress=kill_after(units))
        assert not target.exists()
        assert (tmp_path / "out.safetensors.partial/state.json").exists()
    resumed: list[int] = []
    calibrate(folder, data=data, output=target, full=full, progress=lambda done, *_: resumed.append(done))
    assert target.read_bytes() == whole.read_bytes()
    assert resumed[1] > seen[-1] - 2
    assert not (tmp_path / "out.safetensors.partial").exists()


@pytest.mark.parametrize("name", ["t5", "mixtral"])
def test_a_killed_run_of_batches_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    """What a batch shares, such as a table of positions, is known again."""
    folder, data = zoo.settle(zoo.ALL[name], tmp_path)
    whole, target, seen = tmp_path / "whole.safetensors", tmp_path / "out.safetensors", list[int]()
    told = {"data": data, "batch_size": 4}
    calibrate(folder, **told, output=whole, progress=lambda _, total, __: seen.append(total))
    for units in range(1, seen[-1] - 1):
        with pytest.raises(Killed):
            calibrate(folder, **told, output=target, progress=kill_after(units))
    calibrate(folder, **told, output=target)
    assert target.read_bytes() == whole.read_bytes()


def test_what_an_earlier_run_left_is_not_taken_for_that_of_a_run_that_was_told_not_to_resume(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    whole, target = tmp_path / "whole.safetensors", tmp_path / "out.safetensors"
    calibrate(folder, data=data, output=whole, full=["*"])
    for units, resume in ((3, True), (2, False)):
        with pytest.raises(Killed):
            calibrate(folder, data=data, output=target, full=["*"], resume=resume, progress=kill_after(units))
    calibrate(folder, data=data, output=target, full=["*"])
    assert target.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("damage", ["gone", "truncated"])
def test_a_run_whose_matrices_were_lost_starts_again(damage: str, tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    whole, target = tmp_path / "whole.safetensors", tmp_path / "out.safetensors"
    calibrate(folder, data=data, output=whole, full=["*"])
    with pytest.raises(Killed):
        calibrate(folder, data=data, output=target, full=["*"], progress=kill_after(3))
    grams = tmp_path / "out.safetensors.partial/grams.bin"
    if damage == "gone":
        grams.unlink()
    else:
        grams.write_bytes(grams.read_bytes()[:-4])
    calibrate(folder, data=data, output=target, full=["*"])
    assert target.read_bytes() == whole.read_bytes()


def test_a_second_calibration_into_an_output_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="no locks on this system")
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    whole, target = tmp_path / "whole.safetensors", tmp_path / "out.safetensors"
    calibrate(folder, data=data, output=whole, full=["*"])
    refused = []

    def meddle(_done: int, _total: int, _what: str) -> None:
        for resume in (True, False):
            with pytest.raises(OutputError, match=r"another run is writing `.*out\.safetensors\.partial`"):
                calibrate(folder, data=data, output=target, resume=resume)
        refused.append(True)

    calibrate(folder, data=data, output=target, full=["*"], progress=meddle)
    assert refused
    assert target.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "out.safetensors.partial").exists()
