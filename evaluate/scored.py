"""What `eval`, `gate` and `sweep` said of models: their measures, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..fusion.checkpoint.json_file import read_json
from ..fusion.errors import DataError

if TYPE_CHECKING:
    from .evaluate import SuiteScores
    from .points import Sweep
    from .release import Judgement

    Scores = Path | str | SuiteScores | Sweep | Judgement


@dataclass(frozen=True, kw_only=True)
class ScoredModel:
    """The measures of one model.

    Attributes:
        name: As it is called: `base`, a folder, or for what a sweep picked its method and strength.
        role: `base`, `tuned` or `fused` where a gate or a sweep says so; else empty.
        suite: The name of the suite; empty where nothing says it.
        picked: Of what a sweep picked, its point; else None.
    """

    name: str
    role: str
    suite: str
    measures: Mapping[str, float]
    picked: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Scores of one or several models: a row a measure, a column a model."""

    models: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]


def score_table(scored: Iterable[ScoredModel]) -> ScoreTable | None:
    """Return scores side by side; of a model that was scored twice on a suite, the last ones."""
    columns = {(one.name, one.suite): one.measures for one in scored}
    if not columns:
        return None
    are_several = len({suite for _, suite in columns}) > 1
    names = dict.fromkeys(measure for measures in columns.values() for measure in measures)
    return ScoreTable(
        models=tuple(f"{name} ({suite})" if are_several and suite else name for name, suite in columns),
        rows=tuple((name, tuple(measures.get(name) for measures in columns.values())) for name in names),
    )


def read_scores(given: Iterable[Scores]) -> list[ScoredModel]:
    """Return the models in what `eval`, `gate` or `sweep` wrote or returned.

    Raises:
        DataError: A file is something else.
    """
    scored: list[ScoredModel] = []
    for one in given:
        file, content = (Path(one), read_json(Path(one))) if isinstance(one, (str, Path)) else (Path(), one.as_json())
        try:
            found = list(_scores_in(content, file))
        except (AttributeError, KeyError, TypeError):  # another file that has such keys
            found = []
        if not found:
            raise DataError(
                f"`{file}` holds no scores",
                hint="`sculpt eval MODEL --suite suite.yaml --json` prints them; a gate's and a sweep's JSON have them",
            )
        scored += found
    return scored


def _scores_in(content: Any, file: Path) -> Iterator[ScoredModel]:
    """Yield the models: one, several, those of a gate, or of a sweep its ends and what it picked."""
    if not isinstance(content, dict):
        return
    if "points" in content:
        yield from _of_sweep(content)
        return
    for model in content.get("models", ()):
        yield from _scores_in(model, file)
    if "limits" in content:
        for key in ("base", "tuned", "model"):
            if isinstance(own := content.get(key), dict):
                role = "fused" if key == "model" else key
                name = role if key != "model" else str(own.get("model", role))
                yield ScoredModel(name=name, role=role, suite=str(own.get("suite", "")), measures=own["measures"])
        return
    measures = content.get("measures")
    if isinstance(measures, dict) and all(isinstance(value, (int, float)) for value in measures.values()):
        name, suite = str(content.get("model", file.stem)), str(content.get("suite", ""))
        yield ScoredModel(name=name, role="", suite=suite, measures=measures)


def _of_sweep(content: Mapping[str, Any]) -> Iterator[ScoredModel]:
    suite = str(content.get("suite", ""))
    for point in content["points"]:
        if point["family"] in ("base", "tuned"):
            yield ScoredModel(name=point["family"], role=point["family"], suite=suite, measures=point["measures"])
    if (picked := content.get("picked")) is not None:
        name = str(picked.get("name", "picked by the sweep"))
        yield ScoredModel(name=name, role="fused", suite=suite, measures=picked["measures"], picked=picked)
