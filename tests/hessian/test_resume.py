"""A calibration that is killed goes on from the last block after which it wrote a state."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from sculpt.fusion.checkpoint.output.workspace import Workspace
from sculpt.fusion.errors import OutputError
from sculpt.hessian import calibrate
from sculpt.hessian.forward import journal

from . import zoo


class Killed(BaseException):
    pass


def kill_after(units: int) -> object:
    """Return a progress callback that ends the run when so many units are done."""

    def progress(done: int, total: int, what: str) -> None:
        if done == units:
            raise Killed

    return progress


@pytest.fixture(autouse=True)
def _state_after_each_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "EVERY_SECONDS", 0.0)


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


@pytest.mark.parametrize(
    ("name", "memory", "full"), [("t5", None, ("*",)), ("t5", None, ()), ("mixtral", 1, ("*",)), ("whisper", 1, ("*",))]
)
def test_a_run_that_wrote_a_state_after_every_third_unit_gives_the_same_bytes(
    name: str, memory: int | None, full: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As units are that take a third of the time between two states: batches that wait meanwhile are kept too."""
    asked: list[bool] = []

    def is_due(_: journal.Journal) -> bool:
        asked.append(len(asked) % 3 == 1)
        return asked[-1]

    monkeypatch.setattr(journal.Journal, "is_due", is_due)
    folder, data = zoo.settle(zoo.ALL[name], tmp_path)
    whole, target = tmp_path / "whole.safetensors", tmp_path / "out.safetensors"
    told = {"data": data, "full": full, "memory": memory}
    seen: list[int] = []
    calibrate(folder, **told, output=whole, progress=lambda _, total, __: seen.append(total))
    asked.clear()
    for units in range(2, seen[-1] - 1, 2):
        with pytest.raises(Killed):
            calibrate(folder, **told, output=target, progress=kill_after(units))
        asked.clear()
    resumed: list[int] = []
    calibrate(folder, **told, output=target, progress=lambda done, *_: resumed.append(done))
    assert 0 < resumed[0] < seen[-1]
    assert target.read_bytes() == whole.read_bytes()


def test_units_that_take_no_time_are_passed_without_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "EVERY_SECONDS", 3600.0)
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    target = tmp_path / "out.safetensors"
    with pytest.raises(Killed):
        calibrate(folder, data=data, output=target, progress=kill_after(3))
    assert not target.exists()
    assert not [*tmp_path.glob("*.partial/*.bin"), *tmp_path.glob("*.partial/state.json")]
    calibrate(folder, data=data, output=target)


def test_what_an_earlier_run_left_is_not_taken_for_that_of_a_run_that_was_told_not_to_resume(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    whole, target = tmp_path / "whole.safetensors", tmp_path / "out.safetensors"
    calibrate(folder, data=data, output=whole, full=["*"])
    for units, resume in ((3, True), (2, False)):
        with pytest.raises(Killed):
            calibrate(folder, data=data, output=target, full=["*"], resume=resume, progress=kill_after(units))
    calibrate(folder, data=data, output=target, full=["*"])
    assert target.read_bytes() == whole.read_bytes()


def damaged(content: bytes, how: str, place: int) -> bytes:
    """Return what a bad disk or a power cut makes of a file."""
    if how == "bit":
        place %= len(content)
        return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
    return {"zeroed": bytes(len(content)), "cut": content[: len(content) // 2], "empty": b""}[how]


def test_no_damage_to_what_a_killed_run_left_changes_the_statistics(tmp_path: Path) -> None:
    """Every kind of file of an unfinished calibration: the run goes on or starts again, to the same bytes."""
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    whole, target = tmp_path / "whole.safetensors", tmp_path / "out.safetensors"
    left, kept = tmp_path / "out.safetensors.partial", tmp_path / "kept"
    calibrate(folder, data=data, output=whole, full=["*q_proj*"])
    with pytest.raises(Killed):
        calibrate(folder, data=data, output=target, full=["*q_proj*"], progress=kill_after(3))
    left.rename(kept)
    names = sorted(file.name for file in kept.iterdir() if file.name != "sculpt-unfinished.json")
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(name.partition("-")[0] if name[0].isalpha() else "parked", []).append(name)
    assert {"parked", "unit", "grams.bin", "state.json"} <= kinds.keys()
    ways = [("bit", "zeroed"), ("bit", "cut"), ("bit", "empty"), ("bit", "gone")]
    cases = [(files, how) for files, some in zip(kinds.values(), ways * 2, strict=False) for how in some]
    for number, (files, how) in enumerate(cases):
        shutil.copytree(kept, left)
        file = left / files[number % len(files)]
        if how == "gone":
            file.unlink()
        else:
            file.write_bytes(damaged(file.read_bytes(), how, 997 * number))
        calibrate(folder, data=data, output=target, full=["*q_proj*"])
        assert target.read_bytes() == whole.read_bytes(), (file.name, how)
        target.unlink()


def test_a_model_that_was_saved_again_is_calibrated_from_the_start(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    target = tmp_path / "out.safetensors"
    with pytest.raises(Killed):
        calibrate(folder, data=data, output=target, progress=kill_after(3))
    for file in folder.glob("*.safetensors"):
        os.utime(file)
    seen: list[int] = []
    calibrate(folder, data=data, output=target, progress=lambda done, *_: seen.append(done))
    assert seen[0] == 0


def test_statistics_replace_neither_the_model_nor_the_data_nor_what_is_no_statistics(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    other = tmp_path / "notes.txt"
    other.write_text("precious")
    before = {file: file.read_bytes() for file in (*folder.iterdir(), data, other)}
    for output, words in (
        (folder / "model.safetensors", "lies inside the input"),
        (data, "is the input"),
        (other, "not a file of statistics that sculpt wrote"),
    ):
        with pytest.raises(OutputError, match=words):
            calibrate(folder, data=data, output=output, overwrite=True)
    assert {file: file.read_bytes() for file in before} == before


def test_what_another_number_of_processes_left_goes(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    target = tmp_path / "out.safetensors"
    for rank in range(2):
        left = Workspace(target, made_by="calibrate", suffix=f"-{rank}-of-2.partial")
        (left.folder / "state.json").write_text("{}")
        left.close(keep=True)
    foreign = tmp_path / "out.safetensors-2-of-2.partial"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("precious")
    calibrate(folder, data=data, output=target)
    assert [*tmp_path.glob("*.partial")] == [foreign]


def test_too_little_room_is_told_before_any_sample_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    monkeypatch.setattr("sculpt.hessian.runner.free_bytes", lambda _folder: 10)
    with pytest.raises(OutputError, match=r"and the disk of `.*out` has 0 kB free"):
        calibrate(folder, data=data, output=tmp_path / "out", full=["*"], progress=kill_after(0))
    assert not list(tmp_path.glob("out*"))


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
