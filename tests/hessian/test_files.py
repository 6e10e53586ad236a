"""Files of statistics: what is written comes back, equal statistics are equal bytes, damage is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.errors import CurvatureError
from sculpt.hessian import CalibrationOptions, DiagonalHessian, Provenance, calibrate
from sculpt.hessian.session import Session
from sculpt.hessian.store.report import report

from . import zoo


def provenance(**given: object) -> Provenance:
    plain = {
        "model": "sft",
        "model_fingerprint": "xxh3-128:1",
        "model_class": "LlamaForCausalLM",
        "data": "train.jsonl",
        "data_digest": "xxh3-128:2",
        "num_samples": 3,
        "num_tokens": 10,
        "max_length": 16,
        "seed": 0,
        "dtype": "float32",
        "versions": (("torch", "2"),),
    }
    return Provenance(**{**plain, **given})  # pyright: ignore[reportArgumentType]


def some(scale: float = 1.0, **given: object) -> DiagonalHessian:
    embedding = Curvature(
        terms=(np.arange(5.0).reshape(5, 1) * scale, np.ones((1, 3)) * scale), num_tokens=int(10 * scale)
    )
    linear = Curvature(terms=(np.array([[1.0, 0.0, 4.0]]) * scale,), num_tokens=int(10 * scale), gram=np.eye(3) * scale)
    return DiagonalHessian(
        curvatures={"z.weight": linear, "a.embed": embedding},
        provenance=provenance(**given),
        why_missing={"class_token": "never reached by the data"},
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    some().save(tmp_path / "h.safetensors")
    loaded, own = DiagonalHessian.load(tmp_path / "h.safetensors"), some()
    assert list(loaded) == ["a.embed", "z.weight"]
    assert loaded.provenance == own.provenance
    assert loaded.why_missing == own.why_missing
    for name in own:
        assert loaded[name].num_tokens == own[name].num_tokens
        assert all(np.array_equal(a, b) for a, b in zip(loaded[name].terms, own[name].terms, strict=True))
    assert np.array_equal(loaded["z.weight"].gram, np.eye(3))  # pyright: ignore[reportArgumentType]
    assert loaded["a.embed"].gram is None


def test_equal_statistics_are_equal_bytes_and_any_reader_reads_them(tmp_path: Path) -> None:
    for name in ("one", "two"):
        some().save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with safe_open(tmp_path / "one", "np") as opened:
        assert set(opened.keys()) == {"a.embed", "a.embed#1", "z.weight", "z.weight#gram"}
        assert opened.get_tensor("z.weight").tolist() == [[1.0, 0.0, 4.0]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_merging_adds_sums_and_counts() -> None:
    merged = some().merge([some(2.0, data="other.jsonl", num_samples=5)])
    assert merged["z.weight"].terms[0].tolist() == [[3.0, 0.0, 12.0]]
    assert merged["z.weight"].num_tokens == 30
    assert np.array_equal(merged["z.weight"].gram, 3 * np.eye(3))  # pyright: ignore[reportArgumentType]
    assert merged["a.embed"].terms[0][:, 0].tolist() == [0, 3, 6, 9, 12]
    assert (merged.provenance.num_samples, merged.provenance.num_tokens) == (8, 20)
    assert merged.provenance.data == "train.jsonl + other.jsonl"


def test_merged_matrices_stay_shared_and_may_lie_in_a_file(tmp_path: Path) -> None:
    def side(seed: int, *, full: bool = True) -> DiagonalHessian:
        x = np.random.default_rng(seed).standard_normal((9, 3))
        gram = (x.T @ x).astype(np.float32)
        seen = Curvature(terms=((x * x).sum(0)[None],), num_tokens=9, gram=gram)
        of_value = Curvature(terms=seen.terms, num_tokens=9, gram=gram if full else None)
        return DiagonalHessian(curvatures={"l.0.q": seen, "l.0.k": seen, "l.0.v": of_value}, provenance=provenance())

    ours, theirs = side(1), side(2, full=False)
    merged = ours.merge([theirs], gram_file=tmp_path / "grams.bin")
    expected = ours["l.0.q"].gram.astype(float) + theirs["l.0.q"].gram  # pyright: ignore[reportOptionalMemberAccess, reportOptionalOperand]
    np.testing.assert_allclose(merged["l.0.q"].gram, expected, rtol=1e-6)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert merged["l.0.q"].gram is merged["l.0.k"].gram
    assert isinstance(merged["l.0.q"].gram.base, np.memmap)  # pyright: ignore[reportOptionalMemberAccess]
    assert merged["l.0.v"].gram is None
    held = ours.merge([theirs])
    assert np.array_equal(held["l.0.q"].gram, merged["l.0.q"].gram)  # pyright: ignore[reportArgumentType]


def test_another_models_statistics_are_not_merged() -> None:
    with pytest.raises(CurvatureError, match="different models"):
        some().merge([some(model_fingerprint="xxh3-128:9", model="other")])


def _with_header(path: Path, change: object) -> None:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    change(header)  # pyright: ignore[reportCallIssue]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])


def _about(header: dict[str, dict[str, str]], **change: object) -> None:
    about = json.loads(header["__metadata__"]["sculpt"])
    header["__metadata__"]["sculpt"] = json.dumps({**about, **change})


DAMAGE = {
    "no metadata": (lambda h: h.pop("__metadata__"), "holds no statistics of sculpt"),
    "another format": (lambda h: _about(h, format=7), "is of format 7; this version of sculpt reads 3"),
    "no provenance": (lambda h: _about(h, provenance={}), "is malformed: `provenance.model`: field required"),
    "a lost count": (lambda h: _about(h, num_tokens={}), "lacks a term or its token count"),
    "a lost term": (lambda h: h.__setitem__("a.embed#2", h.pop("a.embed#1")), "lacks a term"),
    "an odd name": (lambda h: h.__setitem__("a.embed#x", h.pop("a.embed#1")), "is not the name of a statistic"),
    "another dtype": (lambda h: h["z.weight"].__setitem__("dtype", "I64"), "is I64, expected F64"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_refused(case: str, tmp_path: Path) -> None:
    change, message = DAMAGE[case]
    some().save(tmp_path / "h")
    _with_header(tmp_path / "h", change)
    with pytest.raises(CurvatureError, match=message):
        DiagonalHessian.load(tmp_path / "h")


@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN or infinity"), (-1.0, "negative sum of squares")])
def test_impossible_sums_are_refused(value: float, message: str, tmp_path: Path) -> None:
    broken = DiagonalHessian(
        curvatures={"w": Curvature(terms=(np.array([[value]]),), num_tokens=1)}, provenance=provenance()
    )
    broken.save(tmp_path / "h")
    with pytest.raises(CurvatureError, match=message):
        DiagonalHessian.load(tmp_path / "h")


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    some().save(tmp_path / "h")
    raw = (tmp_path / "h").read_bytes()
    for length in (0, 4, 20, len(raw) - 1):
        (tmp_path / "h").write_bytes(raw[:length])
        with pytest.raises(CurvatureError):
            DiagonalHessian.load(tmp_path / "h")
    with pytest.raises(CurvatureError, match="does not exist"):
        DiagonalHessian.load(tmp_path / "nowhere")


def test_the_report_counts_dead_inputs_and_spread() -> None:
    embedding, linear = report(some())
    assert (linear.name, linear.num_inputs, linear.dead, linear.share) == ("z.weight", 3, 1, 1.0)
    assert linear.median == 3.0
    low, high = np.percentile([3.0, 1.0, 9.0], [1, 99])
    assert linear.spread == pytest.approx(high / low)
    assert embedding.num_inputs == 15


def test_tensors_that_see_the_same_share_one_matrix_in_the_file(tmp_path: Path) -> None:
    gram = np.eye(3, dtype=np.float32)
    one = Curvature(terms=(np.ones((1, 3)),), num_tokens=1, gram=gram)
    DiagonalHessian(curvatures={"q": one, "k": one}, provenance=provenance()).save(tmp_path / "h.safetensors")
    with safe_open(tmp_path / "h.safetensors", "np") as opened:
        assert set(opened.keys()) == {"k", "q", "k#gram"}
    loaded = DiagonalHessian.load(tmp_path / "h.safetensors")
    assert loaded["q"].gram is loaded["k"].gram


def test_matrices_of_finished_blocks_lie_on_disk_once(tmp_path: Path) -> None:
    """Calibrating to a file holds no more than a block's matrices in memory."""
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    with Session(folder, CalibrationOptions(data=data, full=("*",))) as session:
        session.gram_file = tmp_path / "grams.bin"
        for block in session.blocks(may_return=True):
            for name, curvature in block.items():
                assert curvature.gram is None or isinstance(curvature.gram.base, np.memmap), name
                assert not any("gram" in key for key in session.weights.statistics()[name].dump()), name
    written = calibrate(folder, data=data, full=["*"], output=tmp_path / "h.safetensors")
    grams = {id(curvature.gram): curvature.gram for curvature in written.values() if curvature.gram is not None}
    assert sum(gram.nbytes for gram in grams.values()) == (tmp_path / "grams.bin").stat().st_size
    layer = [f"model.layers.0.self_attn.{kind}_proj.weight" for kind in "qkv"]
    assert len({id(written[name].gram) for name in layer}) == 1
    assert not list(tmp_path.glob("*.partial"))
