"""Two runs with one output: the second is refused, the first is not disturbed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sculpt
from sculpt.fusion.checkpoint.output.claim import Claim
from sculpt.fusion.errors import OutputError
from sculpt.fusion.lora.write import write_adapter
from sculpt.fusion.methods import Dare, Method, TaskArithmetic

pytest.importorskip("fcntl", reason="no locks on this system")
Pair = Callable[..., tuple[Path, Path]]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


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


def test_a_claim_of_another_process_holds_until_it_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from sculpt.fusion.checkpoint.output.claim import Claim\n"
        "claim = Claim(Path(sys.argv[1]))\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "out.partial")], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match="another run"):
            Claim(tmp_path / "out.partial")
        process.kill()
    with Claim(tmp_path / "out.partial"):
        pass
    assert not (tmp_path / "out.partial").exists()


def test_a_claim_does_not_go_to_who_opened_the_folder_before_it_was_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    first, real = Claim(tmp_path / "out.partial"), fcntl.flock

    def finish_first(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        (tmp_path / "out.partial").rename(tmp_path / "out")
        first.release()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", finish_first)
    with Claim(tmp_path / "out.partial") as second:
        assert not os.path.samefile(second.folder, tmp_path / "out")
        assert (tmp_path / "out.partial").is_dir()
    assert (tmp_path / "out").is_dir()


def test_emptying_removes_folders_and_links_but_nothing_behind_them(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("x")
    with Claim(tmp_path / "out.partial") as claim:
        (claim.folder / "sub").mkdir()
        (claim.folder / "sub/file").write_text("x")
        (claim.folder / "link").symlink_to(tmp_path / "kept", target_is_directory=True)
        claim.empty()
        assert not list(claim.folder.iterdir())
    assert (tmp_path / "kept/file").exists()


def test_what_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "out.partial").write_text("a file")
    with pytest.raises(OutputError, match=r"cannot write `.*out\.partial`"):
        Claim(tmp_path / "out.partial")


def test_an_adapter_is_not_written_over_one_under_way(tmp_path: Path) -> None:
    with Claim(tmp_path / "out.partial"), pytest.raises(OutputError, match="another run"):
        write_adapter(tmp_path / "out", {}, {}, {})
    assert not (tmp_path / "out").exists()
