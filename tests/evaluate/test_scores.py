from __future__ import annotations

import pytest
from sculpt.evaluate.scores import average, h_score, source_target_average
from sculpt.fusion.errors import DataError

# AdaDARE-γ, Tab. 1, zero-shot row: eight scores on pre-trained tasks and one on the target task.
PAPER_GENERAL = [143.0, 116.9, 124.0, 122.6, 57.26, 60.75, 76.65, 49.19]
PAPER_TARGET = [83.4]


def test_avg_is_the_papers_on_its_zero_shot_row() -> None:
    assert round(average(PAPER_GENERAL, PAPER_TARGET), 2) == 92.64


def test_h_score_is_the_papers_on_its_zero_shot_row() -> None:
    assert round(h_score(PAPER_GENERAL, PAPER_TARGET), 2) == 88.29


def test_lorasculpts_average_counts_a_side_once_not_a_task() -> None:
    assert source_target_average([10.0, 30.0, 20.0], [60.0]) == 40.0
    assert average([10.0, 30.0, 20.0], [60.0]) == 30.0


@pytest.mark.parametrize(("general", "target"), [([0.0], [50.0]), ([50.0], [0.0]), ([0.0, 0.0], [0.0])])
def test_h_score_is_zero_where_a_side_is_zero(general: list[float], target: list[float]) -> None:
    assert h_score(general, target) == 0.0


def test_h_score_of_equal_sides_is_their_value() -> None:
    assert h_score([40.0], [40.0]) == pytest.approx(40.0)


@pytest.mark.parametrize("measure", [average, h_score, source_target_average])
def test_a_mean_of_nothing_is_refused(measure) -> None:
    with pytest.raises(DataError, match="a mean needs scores on both sides, got 0 general and 1 target"):
        measure([], [1.0])
