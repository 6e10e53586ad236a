"""Sweeps: the weights that are scored, what is computed once, searches, choices, charts."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sculpt.api import prepare_fuse
from sculpt.evaluate.charts import by_sparsity, by_strength, draw, pairs_of, terminal_chart
from sculpt.evaluate.choice import Pick, golden_section, least_that_holds
from sculpt.evaluate.evaluate import SuiteScores, TaskScore, evaluate
from sculpt.evaluate.live_fuse import Distance, LiveFuse
from sculpt.evaluate.per_block import BlockLoss, block_losses, block_strengths
from sculpt.evaluate.points import Point, Sweep
from sculpt.evaluate.strengths import Family, parse_grid
from sculpt.evaluate.suite import read_suite
from sculpt.evaluate.sweep import Grid, run_sweep
from sculpt.fusion.arithmetic.curvature import Curvature, Curvatures
from sculpt.fusion.arithmetic.two_sided import Protection
from sculpt.fusion.errors import MethodError, ModelError
from sculpt.fusion.methods import AdaDare, Dare, Magnitude, Method, Tailor, TaskArithmetic
from sculpt.fusion.record.manifest import Manifest
from sculpt.fusion.run.settings import Settings
from sculpt.live.model import load_model

from .conftest import Pair

Writer = Callable[..., Path]
PICK = Pick(text="h-score", measure="h-score", limit=None)
SUITE = """
pretrained: {prose: {scorer: perplexity, file: prose.jsonl, score: probability}}
target: {quiz: {scorer: multiple-choice, file: quiz.jsonl}}
"""


def curvature_of(pair: Pair) -> dict[str, Curvatures]:
    """Statistics of the right shape for every matrix."""
    rng = np.random.default_rng(0)
    state = load_model(pair.base, device="cpu").model.state_dict()
    return {
        name: (None, Curvature(terms=(rng.exponential(10, (1, tensor.shape[1])),), num_tokens=10))
        for name, tensor in state.items()
        if tensor.ndim == 2
    }


@pytest.fixture(scope="module")
def live(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> LiveFuse:
    prepared = prepare_fuse(
        pair.base,
        pair.tuned,
        output=tmp_path_factory.mktemp("live") / "fused",
        method=AdaDare(),
        settings=Settings(seed=3),
    )
    return LiveFuse(prepared, curvature_of(pair), device="cpu")


@pytest.fixture
def suite(rows_file: Writer, suite_file: Writer):
    rows_file("prose.jsonl", {"text": "The cat sat on the mat."}, {"text": "A second line of text."})
    rows_file("quiz.jsonl", *({"prompt": f"Q{k}", "choices": [" a", " b", " c"], "answer": k % 3} for k in range(6)))
    return read_suite(suite_file(SUITE))


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "method",
    [
        AdaDare(gamma=0.37, sparsity=0.8),
        AdaDare(gamma=1.0, sparsity=0.5, allocation="exact"),
        AdaDare(gamma=0.9, sparsity=0.8, scope="block"),
        AdaDare(gamma=0.9, sparsity=0.8, eta_relative=0.02),
        Dare(scale=0.6),
        Magnitude(density=0.3, scale=0.7),
        TaskArithmetic(scale=0.0),
        TaskArithmetic(scale=1.0),
    ],
    ids=lambda method: f"{method.name}",
)
def test_what_is_scored_has_the_bits_of_what_is_written(method: Method, live: LiveFuse) -> None:
    live.set(AdaDare(gamma=0.5))  # the weights of another point were there before
    live.set(method)
    scored = parameters(live.live.model)
    manifest = live.write(method, provenance=None, overwrite=True)
    written = parameters(load_model(live.prepared.output, device="cpu").model)
    assert scored.keys() == written.keys()
    for name in scored:
        assert torch.equal(scored[name], written[name]), name
    assert manifest.options == method.for_models(1).options()


def protected_curvature(live: LiveFuse) -> dict[str, Curvatures]:
    """Both sides of every matrix, the target's and a general one."""
    rng, found = np.random.default_rng(1), {}
    for name, (_, curvature) in (live.curvature or {}).items():
        assert curvature is not None
        width = curvature.terms[0].shape[1]
        sides = []
        for _ in range(2):
            x = rng.standard_normal((2 * width, width)) @ rng.standard_normal((width, width))
            sides.append(Curvature(terms=((x * x).sum(0)[None],), num_tokens=len(x), gram=(x.T @ x).astype(np.float32)))
        found[name] = (sides[1], sides[0])
    return found


@pytest.fixture(scope="module")
def protecting(live: LiveFuse) -> LiveFuse:
    return LiveFuse(live.prepared, protected_curvature(live), device="cpu")


@pytest.mark.parametrize("method", [AdaDare(gamma=1, sparsity=0.0), AdaDare(gamma=1, sparsity=0.9), Dare(scale=0.6)])
def test_protected_weights_are_written_as_they_were_scored(method: Method, protecting: LiveFuse) -> None:
    protecting.set(method, protection=Protection(weight=3))  # what is remembered must not serve another weight
    protection = Protection(weight=0.5, curvature="block:8")
    protecting.set(method, protection=protection)
    scored = parameters(protecting.live.model)
    manifest = protecting.write(method, protection=protection, provenance=None, overwrite=True)
    written = parameters(load_model(protecting.prepared.output, device="cpu").model)
    for name in scored:
        assert torch.equal(scored[name], written[name]), name
    assert manifest.settings["protection"]["weight"] == 0.5


def test_weights_of_a_protection_are_swept_from_the_fine_tune_to_the_base(protecting: LiveFuse, suite) -> None:
    family = (Family.parse("adadare"),)
    grid = Grid(families=family, strengths=(0.0, 1.0, 1e9), sparsities=(0.0,), protection=Protection())
    base, tuned, none, some, all_of_it = run_sweep(live=protecting, suite=suite, grid=grid, pick=PICK).points
    assert none.scores == tuned.scores
    assert all_of_it.scores.measures == pytest.approx(base.scores.measures, abs=1e-3)
    assert none.distance.l1 > some.distance.l1 > all_of_it.distance.l1
    assert some.protection is not None
    assert some.as_json()["protection"]["weight"] == 1.0
    found = run_sweep(protecting, suite, dataclasses.replace(grid, strengths=None), PICK, tolerance=0.5)
    assert all(0.01 <= point.strength <= 100 for point in found.tried)
    assert found.best(PICK).scores.measures["h-score"] >= some.scores.measures["h-score"] - 5


def test_blocks_with_a_strength_of_their_own_are_written_as_they_were_scored(live: LiveFuse) -> None:
    blocks = {"model.layers.0": 0.2, "model.layers.1": 0.9, "model.embed_tokens": 0.0}
    live.set(AdaDare(gamma=0.5), blocks)
    scored = parameters(live.live.model)
    live.write(AdaDare(gamma=0.5), blocks, provenance=None, overwrite=True)
    written = parameters(load_model(live.prepared.output, device="cpu").model)
    base = parameters(load_model(live.prepared.plan.base.path, device="cpu").model)
    assert all(torch.equal(scored[name], written[name]) for name in scored)
    assert torch.equal(scored["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert not torch.equal(scored["model.layers.1.mlp.up_proj.weight"], base["model.layers.1.mlp.up_proj.weight"])


def test_an_interrupted_write_is_not_resumed_with_other_block_strengths(live: LiveFuse) -> None:
    first, second = ({"model.layers.0": gamma, "model.layers.1": gamma} for gamma in (0.9, 0.1))

    def interrupt(done: int, total: int, _name: str) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        live.write(AdaDare(gamma=0.5), first, provenance=None, overwrite=True, progress=interrupt)
    live.write(AdaDare(gamma=0.5), second, provenance=None, overwrite=True)
    written = parameters(load_model(live.prepared.output, device="cpu").model)
    live.set(AdaDare(gamma=0.5), second)
    scored = parameters(live.live.model)
    assert all(torch.equal(scored[name], written[name]) for name in scored)


def test_reductions_are_made_once_for_all_strengths(live: LiveFuse) -> None:
    live.set(AdaDare(gamma=0.31, sparsity=0.77))
    before = live.backend.num_passes
    for gamma in (0.0, 0.2, 0.5, 1.0):
        live.set(AdaDare(gamma=gamma, sparsity=0.77))
    assert live.backend.num_passes == before
    live.set(AdaDare(gamma=0.5, sparsity=0.6))
    assert live.backend.num_passes > before


def test_a_sweep_scores_what_evaluating_the_written_model_scores(live: LiveFuse, suite) -> None:
    grid = Grid(families=(Family.parse("adadare"), Family.parse("dare")), strengths=(0.0, 0.5), sparsities=(0.5, 0.9))
    swept = run_sweep(live, suite, grid, Pick.parse("h-score", suite.measures()))
    assert len(swept.points) == 2 + 2 * 2 * 2
    assert swept.points[0].scores == evaluate(live.prepared.plan.base.path, suite, device="cpu")
    assert swept.points[1].scores == evaluate(live.prepared.plan.tuned[0].path, suite, device="cpu")
    for point in swept.tried:
        if point.strength == 0:
            assert point.scores == swept.points[0].scores
    chosen = next(p for p in swept.tried if p.family == "adadare" and p.strength == 0.5 and p.sparsity == 0.9)
    live.write(chosen.method, provenance=None, overwrite=True)
    assert chosen.scores == evaluate(live.prepared.output, suite, device="cpu")
    table = list(csv.DictReader(io.StringIO(swept.as_csv())))
    assert len(table) == len(swept.points)
    assert float(table[2]["h-score"]) == pytest.approx(swept.tried[0].scores.measures["h-score"], rel=1e-5)
    assert set(by_sparsity(swept, "h-score")) == {"adadare", "dare"}
    assert [len(line) for line in by_strength(swept, "target").values()] == [2, 2, 2, 2]


def test_a_search_ends_near_the_best_of_a_fine_grid(live: LiveFuse, suite) -> None:
    pick = Pick.parse("prose", suite.measures())
    family = (Family.parse("task-arithmetic"),)
    found = run_sweep(live, suite, Grid(families=family, strengths=None), pick, tolerance=0.05).best(pick)
    grid = Grid(families=family, strengths=parse_grid("0:1:0.05"))
    best = run_sweep(live, suite, grid, pick).best(pick)
    assert found.scores.measures["prose"] >= best.scores.measures["prose"] * 0.98


def test_a_gamma_per_block_keeps_the_distance_of_one_for_all(live: LiveFuse, suite) -> None:
    grid = Grid(families=(Family.parse("adadare"),), strengths=(0.5,), sparsities=(0.5,), per_block=True)
    one, own = run_sweep(live, suite, grid, Pick.parse("h-score", suite.measures())).tried
    assert own.blocks is not None
    assert len(set(own.blocks.values())) > 1
    assert own.distance.l1 == pytest.approx(one.distance.l1, rel=0.05)  # equal in expectation


def expected(losses: dict[str, BlockLoss], gammas: dict[str, float]) -> float:
    return sum(loss.at(gammas[block]) for block, loss in losses.items())


def test_block_strengths_minimise_the_expected_loss_at_their_distance() -> None:
    losses = {
        "a": BlockLoss(over_q=10.0, squares=2.0, delta_l1=3.0),
        "b": BlockLoss(over_q=4.0, squares=3.0, delta_l1=1.0),
        "c": BlockLoss(over_q=100.0, squares=9.0, delta_l1=5.0),
    }
    rng = np.random.default_rng(0)
    for strength in (0.0, 0.1, 0.3, 0.6, 1.0):
        found = block_strengths(losses, strength)
        distance = strength * 9
        assert sum(found[block] * loss.delta_l1 for block, loss in losses.items()) == pytest.approx(distance, abs=1e-9)
        assert expected(losses, found) <= expected(losses, dict.fromkeys(losses, strength)) + 1e-9
        for _ in range(200):  # no step along the constraint leads down
            step = rng.standard_normal(3)
            lengths = np.array([3.0, 1.0, 5.0])
            step = (step - lengths * (step @ lengths) / (lengths @ lengths)) * 1e-3
            moved = {block: found[block] + s for block, s in zip(losses, step, strict=True)}
            if all(0 <= gamma <= 1 for gamma in moved.values()):
                assert expected(losses, moved) >= expected(losses, found) - 1e-9


def test_block_losses_are_those_of_the_definition(live: LiveFuse) -> None:
    method = AdaDare(sparsity=0.7, allocation="exact")
    half, one = (live.fused(AdaDare(gamma=g, sparsity=0.7, allocation="exact")).records for g in (0.5, 1.0))
    losses = block_losses(method, half, one)
    third = live.fused(AdaDare(gamma=0.3, sparsity=0.7, allocation="exact")).records
    for block, loss in losses.items():
        records = [record for name, record in third.items() if name.startswith(block)]
        assert loss.at(0.3) == pytest.approx(sum(r.figures["expected_loss_exact"] for r in records), rel=1e-6)
        assert loss.squares <= loss.over_q * (1 + 1e-9)


@pytest.mark.parametrize("method", [AdaDare(sparsity=0.0), AdaDare(scope="model")])
def test_block_strengths_need_losses_by_tensor(method: AdaDare) -> None:
    with pytest.raises(MethodError, match="needs a sparsity between 0 and 1"):
        block_losses(method, {}, {})


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0.3:1.0:0.1", (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)), ("0.5", (0.5,)), ("0.8,0.95", (0.8, 0.95))],
)
def test_a_grid_holds_both_ends_to_the_last_digit(text: str, numbers: tuple[float, ...]) -> None:
    assert parse_grid(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "1:0:0.1", "0:1:0", "0:1", "0:1:0.0001"])
def test_what_is_no_grid_is_refused(text: str) -> None:
    with pytest.raises(MethodError, match="is not a grid"):
        parse_grid(text)


def test_families_have_the_options_that_were_typed() -> None:
    family = Family.parse("adadare:allocation=exact,scope=block")
    assert family.at(0.4, 0.8) == AdaDare(gamma=0.4, sparsity=0.8, allocation="exact", scope="block")
    assert Family.parse("magnitude").at(0.5, 0.9) == Magnitude(scale=0.5, density=0.1)
    assert Family.parse("task-arithmetic").at(0.5, 0.9) == TaskArithmetic(scale=0.5)
    for text, message in (
        ("slerp", "`slerp` has neither strength nor sparsity"),
        ("dare:colour=red", "`colour=red` is not an option"),
    ):
        with pytest.raises(MethodError, match=message):
            Family.parse(text)


def test_golden_section_finds_the_top_of_a_hill_in_few_steps() -> None:
    seen: list[float] = []

    def hill(x: float) -> float:
        seen.append(x)
        return -((x - 0.618) ** 2)

    golden_section(hill, 0.0, 1.0, 0.02)
    assert abs(max(seen, key=lambda x: -((x - 0.618) ** 2)) - 0.618) < 0.02
    assert len(seen) <= 11


def test_bisection_finds_the_least_strength_that_holds() -> None:
    seen: dict[float, bool] = {}

    def holds(x: float) -> bool:
        seen[x] = x >= 0.37
        return seen[x]

    least_that_holds(holds, 0.0, 1.0, 0.01)
    assert min(x for x, held in seen.items() if held) - 0.37 < 0.01


def point(family: str, strength: float, target: float, pretrained: float) -> Point:
    tasks = tuple(
        TaskScore(name=name, side=side, scorer="perplexity", score=score, num_rows=1)  # pyright: ignore[reportArgumentType]
        for name, side, score in (("p", "pretrained", pretrained), ("t", "target", target))
    )
    return Point(
        family=family,
        strength=strength,
        sparsity=0.9,
        blocks=None,
        method=AdaDare(gamma=strength),
        scores=SuiteScores(suite="s", tasks=tasks),
        distance=Distance(l1=1.0, sparsity=0.9),
        fuse_seconds=0.0,
        score_seconds=0.0,
    )


SWEPT = Sweep(
    points=(
        point("base", 0, 10, 90),
        point("tuned", 1, 80, 40),
        point("adadare", 0.4, 60, 80),
        point("adadare", 0.6, 78, 70),
        point("adadare", 0.8, 79, 50),
    )
)
KNOWN = ["p", "t", "pretrained", "target", "avg", "h-score", "source-target-avg"]


@pytest.mark.parametrize(
    ("text", "strength"),
    [("h-score", 0.6), ("pretrained", 0.4), ("target", 0.8), ("target>=0.97*tuned", 0.6), ("p>=0.5*base", 0.6)],
)
def test_the_best_point_is_chosen_by_a_measure_or_within_a_limit(text: str, strength: float) -> None:
    assert SWEPT.best(Pick.parse(text, KNOWN)).strength == strength


def test_a_limit_that_no_point_keeps_is_refused() -> None:
    with pytest.raises(MethodError, match=r"no point .* keeps `target>=1\*tuned`: the most is 79.00, 80.00 is wanted"):
        SWEPT.best(Pick.parse("target>=1*tuned", KNOWN))
    with pytest.raises(MethodError, match="to pick by bleu takes `bleu`"):
        Pick.parse("bleu", KNOWN)


def test_a_chart_for_the_terminal_has_the_ends_of_its_axes() -> None:
    chart = terminal_chart(pairs_of(by_strength(SWEPT, "target")), x="strength")
    assert "79.0" in chart
    assert "60.0" in chart
    assert chart.count("●") == 3 + 1  # the legend
    assert max(map(len, chart.splitlines())) < 80


def test_charts_are_files_or_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "matplotlib.figure", None)
        with pytest.raises(ModelError, match="need matplotlib"):
            draw(SWEPT, [tmp_path / "x.png"])
    pytest.importorskip("matplotlib")
    draw(SWEPT, [tmp_path / "x.png", tmp_path / "x.svg"])
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "H-score" in (tmp_path / "x.svg").read_text() or "<svg" in (tmp_path / "x.svg").read_text()


def test_what_is_random_is_drawn_for_each_seed_and_what_is_not_once(live: LiveFuse, suite) -> None:
    families = tuple(map(Family.parse, ("dare", "magnitude")))
    grid = Grid(families=families, strengths=(0.5, 1.0), sparsities=(0.5,), seeds=(3, 4, 5))
    swept = run_sweep(live, suite, grid, PICK)
    assert live.prepared.settings.seed == 3
    assert [(p.family, p.seed) for p in swept.tried][::3] == [("dare", 3), ("dare", 3), ("magnitude", 3)]
    assert [len(spot.points) for spot in swept.spots] == [3, 3, 1, 1]
    first = swept.spots[0]
    values = [point.scores.measures["prose"] for point in first.points]
    assert len(set(values)) == 3
    assert first.measures["prose"] == pytest.approx(np.mean(values))
    assert first.deviation("prose") == pytest.approx(np.std(values, ddof=1))
    alone = run_sweep(live, suite, dataclasses.replace(grid, seeds=()), PICK)
    assert alone.tried[0].scores == first.first.scores
    assert alone.tried[0].distance == first.first.distance


def test_model_tailor_is_swept_over_its_sparsity(protecting: LiveFuse, suite) -> None:
    grid = Grid(families=(Family.parse("tailor"),), strengths=(0.3, 0.6), sparsities=(0.5, 0.9))
    swept = run_sweep(protecting, suite, grid, PICK)
    assert [(point.sparsity, point.method) for point in swept.tried] == [(p, Tailor(sparsity=p)) for p in (0.5, 0.9)]
    assert [[mark.at for mark in line] for line in by_sparsity(swept, "target").values()] == [[0.5, 0.9]]


def test_a_chart_has_a_row_for_whatever_was_varied(tmp_path: Path) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure.Figure, "savefig", lambda self, *_, **__: drawn.append(self))

        def axes_of(*points: Point) -> list[Any]:
            draw(Sweep(points=(*SWEPT.points[:2], *points)), [tmp_path / "x.png"])
            return drawn.pop().axes

        rates = [
            dataclasses.replace(point("dare", 1.0, t, 50), sparsity=p, distance=Distance(l1=1, sparsity=p - 0.1))
            for p, t in ((0.5, 40), (0.9, 50), (0.99, 60))
        ]
        strengths = SWEPT.points[2:]
        assert [axes.get_title() for axes in axes_of(*strengths)] == ["target", "general (pre-trained)", "H-score"]
        by_rate = axes_of(*rates)
        assert [(axes.get_xlabel()[:9], axes.get_xscale()) for axes in by_rate] == [("drop rate", "logit")] * 3
        assert [len(axes.lines) for axes in by_rate] == [len(axes_of(*strengths)[0].lines) + 1] * 3  # realised rates
        assert len(axes_of(*strengths, *rates)) == 6
        many = [dataclasses.replace(one, family=f"m{k}") for k in range(30) for one in strengths]
        lines = [line for line in axes_of(*many)[0].lines if line.get_label().startswith("_")]
        looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}
        assert len(looks) >= 30


def test_the_written_model_has_a_manifest_that_names_the_strength(live: LiveFuse) -> None:
    live.write(AdaDare(gamma=0.42), provenance={"source": "test"}, overwrite=True)
    manifest = Manifest.read(live.prepared.output)
    assert manifest.options["gamma"] == 0.42
    assert manifest.curvature == {"source": "test"}
