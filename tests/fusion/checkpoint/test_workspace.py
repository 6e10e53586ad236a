"""The folder in which an output is put together: whose it is, who is kept out, and what a kill leaves is put right."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import sculpt
from sculpt.fusion.checkpoint import Checkpoint
from sculpt.fusion.checkpoint.output import disk, workspace
from sculpt.fusion.checkpoint.output.scratch import Scratch
from sculpt.fusion.checkpoint.output.status import unfinished
from sculpt.fusion.checkpoint.output.workspace import COMMITTING, MARK, REPLACED, Workspace, write_file
from sculpt.fusion.errors import OutputError
from sculpt.fusion.lora.write import write_adapter
from sculpt.fusion.methods import Dare, Method, TaskArithmetic

Pair = Callable[..., tuple[Path, Path]]
Files = dict[str, bytes]


def files_of(folder: Path) -> Files:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def filled(space: Workspace, text: str) -> None:
    space.payload.mkdir()
    (space.payload / "file").write_text(text)


def killed_at(point: int, output: Path) -> int:
    """Replace an output in a process that ends before so many changes of names; return 0 if it came to its end."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    left = iter(range(point))

    def hook(event: str, _arguments: tuple[object, ...]) -> None:
        if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link") and next(left, None) is None:
            os._exit(1)

    with Workspace(output, made_by="test") as space:
        (space.folder / "journal").write_text("so far")
        filled(space, "new")
        sys.addaudithook(hook)
        space.publish(always)
    os._exit(0)


def interrupted_by(error: BaseException, output: Path, *, resumable: bool = False) -> None:
    """Raise an error in the midst of a run."""
    with Workspace(output, made_by="test") as space:
        space.begun, space.resumable = True, resumable
        (space.folder / "journal").write_text("so far")
        raise error


def always(_: Path) -> bool:
    return True


class Stop(BaseException):
    """An interrupt."""


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture(params=["swap", "two renames"])
def renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two renames":
        monkeypatch.setattr(disk, "_rename", lambda *_: False)
    return request.param


# Whose it is.


@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_what_people_made_is_never_taken_for_a_workspace(kind: str, make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    real = tmp_path / "stuff"
    real.mkdir()
    (real / "thesis.txt").write_text("precious")
    if kind == "folder":
        real.rename(tmp_path / "out.partial")
    elif kind == "link":
        (tmp_path / "out.partial").symlink_to(real, target_is_directory=True)
    else:
        (tmp_path / "out.partial").write_text("precious")
    before = files_of(tmp_path)
    with pytest.raises(OutputError, match=r"out\.partial` is in the way, and sculpt did not write it"):
        sculpt.fuse(base, tuned, output=tmp_path / "out", calibration=False)
    with pytest.raises(OutputError, match="is in the way"):
        write_adapter(tmp_path / "out", {}, {}, {"made by": "test"}, overwrite=True)
    assert files_of(tmp_path) == before


def test_an_input_that_has_the_name_of_a_workspace_is_left_alone(make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    for name in ("out.partial", "out.replaced"):
        model = tmp_path / name
        shutil.copytree(tuned, model)
        before = files_of(model)
        if name == "out.partial":
            with pytest.raises(OutputError, match=r"would be written in `.*out\.partial`"):
                sculpt.fuse(base, model, output=tmp_path / "out", calibration=False)
        else:
            (tmp_path / "out.partial").rename(tmp_path / "elsewhere")
            for _ in range(2):
                sculpt.fuse(base, model, output=tmp_path / "out", calibration=False, overwrite=True)
        assert files_of(model) == before


def test_names_of_folders_that_are_made_for_an_output_come_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(disk, "sync", synced.append)
    with Workspace(tmp_path / "a/b/out", made_by="fuse") as space:
        filled(space, "")
        space.publish()
    assert {tmp_path, tmp_path / "a", tmp_path / "a/b"} <= set(synced)


def test_emptying_removes_folders_and_links_but_nothing_behind_them(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("x")
    with Workspace(tmp_path / "out", made_by="test") as space:
        (space.folder / "sub").mkdir()
        (space.folder / "sub/file").write_text("x")
        (space.folder / "link").symlink_to(tmp_path / "kept", target_is_directory=True)
        space.empty()
        assert names_in(space.folder) == [MARK]
    assert files_of(tmp_path) == {"kept/file": b"x"}


# Who is kept out.


@pytest.mark.parametrize("other", [Dare(), TaskArithmetic(scale=0.5)], ids=["same run", "another run"])
def test_a_second_fuse_into_an_output_is_refused_and_the_first_goes_on(
    other: Method, make_pair: Pair, tmp_path: Path
) -> None:
    base, tuned = make_pair()
    sculpt.fuse(base, tuned, output=tmp_path / "plain" / "out", method=Dare(), calibration=False)
    refused = []

    def meddle(_done: int, _total: int, _name: str) -> None:
        with pytest.raises(OutputError, match=r"another run is writing `.*out\.partial`"):
            sculpt.fuse(base, tuned, output=tmp_path / "out", method=other, calibration=False)
        refused.append(True)

    sculpt.fuse(base, tuned, output=tmp_path / "out", method=Dare(), calibration=False, progress=meddle)
    assert refused
    assert files_of(tmp_path / "out") == files_of(tmp_path / "plain" / "out")
    assert not (tmp_path / "out.partial").exists()


def test_a_refused_run_leaves_the_workspace_of_another_that_has_written_nothing_yet(tmp_path: Path) -> None:
    with Workspace(tmp_path / "out", made_by="test") as space:
        with pytest.raises(OutputError, match="another run"):
            Workspace(tmp_path / "out", made_by="test")
        workspace.repair(tmp_path / "out")
        assert names_in(space.folder) == [MARK]


def test_a_lock_of_another_process_holds_until_it_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from sculpt.fusion.checkpoint.output.workspace import Workspace\n"
        "space = Workspace(Path(sys.argv[1]), made_by='test')\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match="another run"):
            Workspace(tmp_path / "out", made_by="test")
        process.kill()
    with Workspace(tmp_path / "out", made_by="test"):
        pass
    assert not (tmp_path / "out.partial").exists()


def test_a_lock_does_not_go_to_who_opened_the_folder_before_it_was_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, real = Workspace(tmp_path / "out", made_by="test"), fcntl.flock

    def finish_first(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        (tmp_path / "out.partial").rename(tmp_path / "gone")
        first.close()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", finish_first)
    with Workspace(tmp_path / "out", made_by="test") as second:
        assert names_in(second.folder) == [MARK]


def test_without_locks_each_run_has_a_folder_of_its_own_and_one_wins(no_locks: None, tmp_path: Path) -> None:
    first, second = (Workspace(tmp_path / "out", made_by="test") for _ in range(2))
    assert first.folder != second.folder
    for space, text in ((first, "first"), (second, "second")):
        filled(space, text)
    first.publish()
    with pytest.raises(OutputError, match="appeared during the run"):
        second.publish()
    first.close()
    second.close()
    assert files_of(tmp_path) == {"out/file": b"first"}


def test_without_locks_a_run_goes_on_where_one_that_has_ended_was_and_not_where_one_runs(
    no_locks: None, tmp_path: Path
) -> None:
    for journal in ("runs", "ended"):
        space = Workspace(tmp_path / "out", made_by="test")
        (space.folder / "journal").write_text(journal)
    mark = json.loads((space.folder / MARK).read_text())
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    (space.folder / MARK).write_text(json.dumps({**mark, "pid": ended.pid}))
    with Workspace(tmp_path / "out", made_by="test") as third:
        assert (third.folder / "journal").read_text() == "ended"
    assert files_of(tmp_path).values() != []
    assert [content for name, content in files_of(tmp_path).items() if name.endswith("journal")] == [b"runs"]


# What has the output's name.


def test_what_appears_meanwhile_is_not_replaced(renames: str, tmp_path: Path) -> None:
    for name, kind in (("a", "folder"), ("b.txt", "file"), ("c", "link")):
        output = tmp_path / name
        with Workspace(output, made_by="test") as space:
            if kind == "file":
                space.payload.write_text("new")
                output.write_text("theirs")
            else:
                filled(space, "new")
            if kind == "folder":
                output.mkdir()
                (output / "file").write_text("theirs")
            elif kind == "link":
                output.symlink_to(tmp_path / "nowhere")
            space.begun = True
            with pytest.raises(OutputError, match="appeared"):
                space.publish()
    assert files_of(tmp_path) == {"a/file": b"theirs", "b.txt": b"theirs"}
    assert (tmp_path / "c").is_symlink()


def test_an_output_is_replaced_whole(renames: str, tmp_path: Path) -> None:
    for text in ("old", "new"):
        with Workspace(tmp_path / "out", made_by="test") as space:
            filled(space, text)
            space.publish(always)
        write_file(tmp_path / "page.html", lambda file: file.write_text(text), made_by="test", may_replace=always)  # noqa: B023
        assert files_of(tmp_path) == {"out/file": text.encode(), "page.html": text.encode()}


def test_an_error_while_the_name_changes_leaves_the_former_output(
    renames: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Workspace(tmp_path / "out", made_by="test") as space:
        filled(space, "old")
        space.publish()

    def fail(*_: object) -> None:
        monkeypatch.undo()
        monkeypatch.setattr(disk, "_rename", lambda *_: False)
        raise OSError(errno.EIO, "Input/output error")

    with Workspace(tmp_path / "out", made_by="test") as space:
        filled(space, "new")
        monkeypatch.setattr(disk, "rename_new" if renames == "two renames" else "swap", fail)
        with pytest.raises(OutputError, match="Input/output error"):
            space.publish(always)
    assert files_of(tmp_path) == {"out/file": b"old"}


def test_what_a_kill_leaves_is_put_right_by_the_next_run(renames: str, tmp_path: Path) -> None:
    """Kill at every change of a name, and then look at what the next run finds."""
    states = set()
    for point in range(40):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        with Workspace(tmp_path / "out", made_by="test") as space:
            filled(space, "old")
            space.publish()
        status = killed_at(point, tmp_path / "out")
        workspace.repair(tmp_path / "out")
        found = files_of(tmp_path)
        now = found["out/file"]
        assert now in (b"old", b"new")
        if now == b"new":
            assert found == {"out/file": b"new"}
        else:
            assert found["out.partial/journal"] == b"so far"
            assert not (tmp_path / "out.partial" / COMMITTING).exists()
            assert not (tmp_path / "out.partial" / REPLACED).exists()
        states.add(now)
        if status == 0:
            break
    assert status == 0
    assert states == {b"old", b"new"}


# What is told.


def test_status_tells_what_is_whole_unfinished_running_and_stranded(make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    output, seen = tmp_path / "out", []

    def stop(_done: int, _total: int, _name: str) -> None:
        seen.extend(unfinished(output))
        if len(seen) == 3:
            raise Stop

    assert unfinished(output) == []
    with pytest.raises(Stop):
        sculpt.fuse(base, tuned, output=output, method=Dare(), calibration=False, progress=stop)
    assert all(one.is_running and one.made_by == "fuse" for one in seen)
    (left,) = unfinished(output)
    assert (left.is_running, left.done, left.holds_former) == (False, "3 of 10 tensors", False)
    sculpt.fuse(base, tuned, output=output, method=Dare(), calibration=False)
    assert unfinished(output) == []
    with Workspace(output, made_by="fuse") as space:
        output.rename(space.folder / REPLACED)
        assert [one.holds_former for one in unfinished(output)] == [True]
    workspace.repair(output)
    assert Checkpoint(output).tensors


# What is left.


def test_a_failure_leaves_nothing_and_an_interrupt_what_can_be_resumed(tmp_path: Path) -> None:
    for error, kept in ((ValueError(), False), (OutputError("no"), False), (Stop(), True)):
        with pytest.raises(type(error)):
            interrupted_by(error, tmp_path / "deep/er/out")
        assert (tmp_path / "deep").exists() == kept
    with pytest.raises(Stop), Workspace(tmp_path / "empty", made_by="test"):
        raise Stop
    assert names_in(tmp_path) == ["deep"]


def test_a_run_that_is_refused_before_it_has_begun_leaves_what_it_found(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        interrupted_by(Stop(), tmp_path / "out")
    with pytest.raises(OutputError), Workspace(tmp_path / "out", made_by="test"):
        raise OutputError("other settings")
    assert (tmp_path / "out.partial/journal").read_text() == "so far"


def test_what_can_be_resumed_outlives_errors_of_the_machine_alone(tmp_path: Path) -> None:
    for error, kept in ((OutputError("no"), False), (OSError(errno.EIO, "no"), False), (MemoryError(), True)):
        with pytest.raises(type(error)):
            interrupted_by(error, tmp_path / "out", resumable=True)
        assert (tmp_path / "out.partial").exists() == kept


def test_an_adapter_is_not_written_over_one_under_way(tmp_path: Path) -> None:
    with Workspace(tmp_path / "out", made_by="test"), pytest.raises(OutputError, match="another run"):
        write_adapter(tmp_path / "out", {}, {}, {"made by": "test"}, overwrite=False)
    assert not (tmp_path / "out").exists()


def test_scratch_folders_of_killed_runs_go_and_those_of_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = "import os\nfrom sculpt.fusion.checkpoint.output.scratch import Scratch\ns = Scratch()\nos._exit(9)\n"
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)})
    foreign = tmp_path / "sculpt-scratch-of-a-person"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    assert len(names_in(tmp_path)) == 2
    with Scratch() as running, Scratch():
        assert running.folder.is_dir()
        assert len(names_in(tmp_path)) == 3
    assert names_in(tmp_path) == [foreign.name]


def test_a_folder_that_another_process_marks_just_now_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the mark comes before the folder is listed or after it."""
    look = Path.iterdir
    for comes_first in (True, False):
        folder = tmp_path / str(comes_first)
        folder.mkdir()
        (folder / workspace.NEW_MARK).touch()

        def listed(path: Path, folder: Path = folder, comes_first: bool = comes_first) -> list[Path]:
            before = [*look(path)]
            (folder / workspace.NEW_MARK).replace(folder / MARK)
            return [*look(path)] if comes_first else before

        monkeypatch.setattr(Path, "iterdir", listed)
        assert workspace.is_marked(folder)
