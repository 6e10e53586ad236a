"""What `repair` chooses where nobody says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sculpt.evaluate.repair import WITH_DATA, WITHOUT, repair
from sculpt.fusion.errors import MethodError
from sculpt.fusion.run.calibration import Calibration


@pytest.mark.parametrize(("data", "weights"), [(None, WITHOUT), ("delta", WITHOUT), ("train.jsonl", WITH_DATA)])
def test_the_weights_that_are_tried_follow_from_the_samples_of_the_task(
    data: str | None, weights: str, tmp_path: Path
) -> None:
    seen: list[dict[str, Any]] = []
    repair(
        tmp_path / "base",
        tmp_path / "sft",
        output=tmp_path / "out",
        suite=tmp_path / "suite.yaml",
        calibration=Calibration(data=data),
        sweep=lambda *_, **options: seen.append(options),
        dry_run=True,
    )
    assert [options["weights"] for options in seen] == [weights]


@pytest.mark.parametrize("wanted", [{"pick": "avg"}, {"weights": "0.3,1"}])
def test_what_takes_a_suite_is_refused_without(wanted: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="suite"):
        repair(tmp_path / "base", tmp_path / "sft", output=tmp_path / "out", **wanted)  # pyright: ignore[reportArgumentType]
