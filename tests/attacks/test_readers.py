"""Only `SculptError` leaves a reader, whatever it reads: all that ever was a fault, and some that are new.

`fuzz.py` is the long form: `make torture`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sculpt.fusion.errors import SculptError

from . import fuzz, readers

NAMES = (
    *("header", "index", "adapter", "hessian", "manifest", "record", "recipe", "suite", "torch", "rows", "config"),
    *("state", "scores", "given", "prompts", "samples", "options", "names", "patch", "numbers", "gguf"),
)
MILLISECONDS = 1500


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, readers.Reader]:
    return {reader.name: reader for reader in readers.readers(readers.Home(tmp_path_factory.mktemp("home")))}


def test_every_reader_is_tried(known: dict[str, readers.Reader]) -> None:
    assert tuple(known) == NAMES
    assert {folder.name for folder in fuzz.CORPUS.iterdir()} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_once_was_a_fault_is_an_answer(name: str, known: dict[str, readers.Reader]) -> None:
    if fuzz.kept(name):  # the first one may import half of transformers
        fuzz.outcome(known[name], known[name].seeds()[0], 30 * fuzz.SECONDS)
    for data in fuzz.kept(name):
        assert fuzz.outcome(known[name], data) in ("accepted", "refused")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_an_error_of_ours_leaves_a_reader(name: str, known: dict[str, readers.Reader]) -> None:
    reader = known[name]
    counts, faults = fuzz.fuzz(reader, random.Random(f"0 {name}"), count=max(10, MILLISECONDS // reader.cost))
    assert not faults, faults
    assert counts["accepted"]
    assert counts["refused"] or name == "names"


def test_an_archive_that_inflates_is_refused_by_name(tmp_path: Path) -> None:
    from sculpt.fusion.checkpoint import Checkpoint

    (tmp_path / "pytorch_model.bin").write_bytes(readers.bomb())
    with pytest.raises(SculptError, match=r"is compressed \(`archive/data\.pkl`\)"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        *(
            ("--gamma", "1e308"),
            ("--threads", "-1"),
            ("--threads", "1000000"),
            ("--device", "meta"),
            ("--device", "hpu"),
        ),
        *(("--max-shard-size", "1B"), ("--eta", "1e308"), ("--seed", "9" * 40), ("-o", "x" * 300), ("--memory", "1B")),
    ],
    ids=" ".join,
)
def test_an_option_out_of_all_bounds_is_a_sentence_or_works(
    options: tuple[str, str], sculpt: Callable[..., Any], tmp_path: Path
) -> None:
    home = readers.Home(tmp_path)
    done = sculpt("fuse", home.base, home.sft, "--no-calibration", "-o", "out", *options, cwd=tmp_path)
    assert done.code in (0, 1)
    assert "failed unexpectedly" not in done.stderr


def test_a_weight_that_is_no_number_is_a_sentence(sculpt: Callable[..., Any], tmp_path: Path) -> None:
    home = readers.Home(tmp_path)
    done = sculpt("repair", home.base, home.sft, "--protect-weight", "x", "-o", "out", cwd=tmp_path)
    assert done.code == 1
    assert "`--protect-weight` must be a number, got `x`" in done.stderr
