"""Which tensors are fused, matched, tied, grown or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import sculpt
from sculpt.fusion.errors import CheckpointError, MismatchError, NonFiniteError, SculptError
from sculpt.fusion.methods import AdaDare, Dare, TaskArithmetic
from sculpt.fusion.names import align

Make = Callable[..., Path]
Read = Callable[[Path], dict[str, np.ndarray]]
HALF = TaskArithmetic(scale=0.5)


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def fuse(base: Path, tuned: Path, output: Path, **settings: object) -> sculpt.Manifest:
    method = settings.pop("method", HALF)
    return sculpt.fuse(
        base,
        tuned,
        output=output,
        method=method,
        calibration=False,
        settings=sculpt.Settings(**settings),  # pyright: ignore[reportArgumentType]
    )


def test_prefixes_are_matched_and_reported(make_checkpoint: Make, tensors_of: Read, tmp_path: Path) -> None:
    base = {
        "model.embed_tokens.weight": floats(5, 4),
        "model.layers.0.w": floats(4, 4),
        "model.layers.1.w": floats(4, 4, seed=1),
    }
    tuned = {name.replace("model.", "language_model.model.", 1): tensor + 1 for name, tensor in base.items()}
    tuned["vision_tower.w"] = floats(3)
    paths = make_checkpoint("b", base), make_checkpoint("t", tuned)
    with pytest.raises(MismatchError, match=r"`vision_tower\.w` is in .* and missing in the base"):
        fuse(*paths, tmp_path / "out")
    manifest = fuse(*paths, tmp_path / "out", policies=sculpt.Policies(on_extra="take-tuned"))
    assert manifest.renamings == ("* in the base is language_model.* in the tuned model (3 tensors)",)
    out = tensors_of(tmp_path / "out")
    assert out.keys() == tuned.keys()
    np.testing.assert_allclose(out["language_model.model.layers.1.w"], base["model.layers.1.w"] + 0.5, rtol=1e-6)
    manifest = fuse(*paths, tmp_path / "base-names", policies=sculpt.Policies(on_extra="drop"), config_from="base")
    assert tensors_of(tmp_path / "base-names").keys() == base.keys()


def test_two_prefixes_that_fit_alike_are_not_guessed() -> None:
    base = {"layers.0.w": (2, 2), "layers.1.w": (2, 2)}
    tuned = {f"{tower}.layers.{i}.w": (2, 2) for tower in ("text", "vision") for i in (0, 1)}
    assert align(base, tuned).pairs == {}
    tuned["vision.layers.1.w"] = (3, 2)
    assert align(base, tuned).pairs == {"layers.0.w": "text.layers.0.w", "layers.1.w": "text.layers.1.w"}


def test_a_prefix_never_renumbers_layers() -> None:
    assert align({"h.0.w": (2,)}, {"h.1.w": (2,)}).pairs == {}


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_head_that_only_one_side_stores_follows_the_config(
    side: str, make_checkpoint: Make, tensors_of: Read, tmp_path: Path
) -> None:
    embed = {"model.embed_tokens.weight": floats(6, 4)}
    moved = {"model.embed_tokens.weight": floats(6, 4) + 1}
    head = {"lm_head.weight": floats(6, 4, seed=2)}
    tied = {"tie_word_embeddings": True, "vocab_size": 6}
    untied = {"tie_word_embeddings": False, "vocab_size": 6}
    if side == "base":  # the base stores a head, the tuned model ties it, and so does the output
        paths = make_checkpoint("b", embed | head, config=untied), make_checkpoint("t", moved, config=tied)
        manifest = fuse(*paths, tmp_path / "out")
        assert tensors_of(tmp_path / "out").keys() == embed.keys()
        assert any("lm_head.weight" in note for note in manifest.notes)
        fuse(*paths, tmp_path / "as-base", config_from="base")
        out = tensors_of(tmp_path / "as-base")["lm_head.weight"]
        np.testing.assert_allclose(out, (head["lm_head.weight"] + moved["model.embed_tokens.weight"]) / 2, rtol=1e-5)
    else:  # the tuned model untied its head: its delta is taken from the base's embedding
        paths = make_checkpoint("b", embed, config=tied), make_checkpoint("t", moved | head, config=untied)
        fuse(*paths, tmp_path / "out")
        out = tensors_of(tmp_path / "out")["lm_head.weight"]
        np.testing.assert_allclose(out, (head["lm_head.weight"] + embed["model.embed_tokens.weight"]) / 2, rtol=1e-5)


def test_a_missing_head_is_refused_where_no_config_ties_it(make_checkpoint: Make, tmp_path: Path) -> None:
    base = {"model.embed_tokens.weight": floats(6, 4), "lm_head.weight": floats(6, 4)}
    tuned = {"model.embed_tokens.weight": floats(6, 4)}
    for name, config in (("none", None), ("untied", {"tie_word_embeddings": False})):
        paths = make_checkpoint(f"b{name}", base), make_checkpoint(f"t{name}", tuned, config=config)
        with pytest.raises(MismatchError, match=r"`lm_head\.weight` is in the base and missing in"):
            fuse(*paths, tmp_path / "out")


def test_tied_weights_that_are_stored_twice_stay_equal(make_checkpoint: Make, tensors_of: Read, tmp_path: Path) -> None:
    config = {"tie_word_embeddings": True, "vocab_size": 40}
    embed, moved = floats(40, 30), floats(40, 30) + floats(40, 30, seed=3) / 10
    sides = [
        make_checkpoint(name, {"model.embed_tokens.weight": weight, "lm_head.weight": weight.copy()}, config=config)
        for name, weight in (("b", embed), ("t", moved))
    ]
    fuse(sides[0], sides[1], tmp_path / "out", method=AdaDare(gamma=1, sparsity=0.5))
    out = tensors_of(tmp_path / "out")
    assert out["lm_head.weight"].tobytes() == out["model.embed_tokens.weight"].tobytes()
    assert out["lm_head.weight"].tobytes() != embed.tobytes()


def test_a_grown_vocabulary_is_fused_where_common_and_taken_where_new(
    make_checkpoint: Make, tensors_of: Read, tmp_path: Path
) -> None:
    base = {"model.embed_tokens.weight": floats(6, 4)}
    tuned = {"model.embed_tokens.weight": floats(8, 4, seed=1)}
    paths = (
        make_checkpoint("b", base, config={"vocab_size": 6}),
        make_checkpoint("t", tuned, config={"text_config": {"vocab_size": 8}}),
    )
    manifest = fuse(*paths, tmp_path / "out")
    old, new = base["model.embed_tokens.weight"], tuned["model.embed_tokens.weight"]
    out = tensors_of(tmp_path / "out")["model.embed_tokens.weight"]
    np.testing.assert_allclose(out[:6], (old + new[:6]) / 2, rtol=1e-5, atol=1e-7)
    assert out[6:].tobytes() == new[6:].tobytes()
    assert manifest.tensors[0].why == "6 common rows; 2 more of the tuned model kept"
    # New rows are not dropped unsaid.
    with pytest.raises(MismatchError, match=r"is \[6, 4\] in the base and \[8, 4\]"):
        fuse(*paths, tmp_path / "as-base", config_from="base")
    policies = sculpt.Policies(on_mismatch="keep-base")
    manifest = fuse(*paths, tmp_path / "as-base", config_from="base", policies=policies)
    left_out = f"2 rows of `model.embed_tokens.weight` of `{paths[1].name}` are left out: the output has fewer"
    assert manifest.notes == (left_out,)
    assert tensors_of(tmp_path / "as-base")["model.embed_tokens.weight"].tobytes() == out[:6].tobytes()


def test_integers_are_copied_and_follow_the_strength(make_checkpoint: Make, tensors_of: Read, tmp_path: Path) -> None:
    def side(value: int) -> dict[str, np.ndarray]:
        return {"w": floats(3) + value, "steps": np.array([value]), "mask": np.array([True, value > 1])}

    paths = make_checkpoint("b", side(1)), make_checkpoint("t", side(2))
    fuse(*paths, tmp_path / "half")
    assert tensors_of(tmp_path / "half")["steps"].tolist() == [2]
    fuse(*paths, tmp_path / "none", method=Dare(scale=0))
    assert tensors_of(tmp_path / "none")["steps"].tolist() == [1]
    assert tensors_of(tmp_path / "none")["mask"].tolist() == [True, False]


@pytest.mark.parametrize(("rest", "expected"), [("base", 0.0), ("tuned", 1.0)])
def test_globs_select_and_the_rest_is_copied(
    rest: str, expected: float, make_checkpoint: Make, tensors_of: Read, tmp_path: Path
) -> None:
    names = ["layers.0.a.weight", "layers.0.b.weight", "layers.1.a.weight", "head.weight"]
    paths = [make_checkpoint(s, {n: np.full(4, v, np.float32) for n in names}) for s, v in (("b", 0), ("t", 1))]
    selection = sculpt.Selection(include=("layers.*",), exclude=("*.b.*", "*nothing*"), rest=rest)  # pyright: ignore[reportArgumentType]
    manifest = fuse(paths[0], paths[1], tmp_path / "out", selection=selection)
    out = {name: float(tensor[0]) for name, tensor in tensors_of(tmp_path / "out").items()}
    assert out == {names[0]: 0.5, names[1]: expected, names[2]: 0.5, names[3]: expected}
    assert manifest.notes == ("exclude `*nothing*` matches no tensor",)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_dtype_casts_every_float_once(dtype: str, make_checkpoint: Make, tensors_of: Read, tmp_path: Path) -> None:
    import torch

    paths = [
        make_checkpoint(s, {"w": floats(300) + v, "n": floats(7), "i": np.arange(3)}) for s, v in (("b", 0), ("t", 0.1))
    ]
    fuse(paths[0], paths[1], tmp_path / "out", dtype=dtype, selection=sculpt.Selection(include=("w",)))
    out = tensors_of(tmp_path / "out")
    delta = (floats(300) + 0.1).astype(np.float32) - floats(300)
    expected = torch.from_numpy(floats(300) + np.float32(0.5) * delta).to(getattr(torch, dtype))
    assert out["w"].astype(np.float64).tolist() == expected.double().tolist()
    assert (
        out["n"].astype(np.float64).tolist() == torch.from_numpy(floats(7)).to(getattr(torch, dtype)).double().tolist()
    )
    assert out["i"].dtype == np.int64


def with_value(value: float) -> np.ndarray:
    array = floats(5000)
    array[4097] = value
    return array


REFUSED: dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray], type[SculptError], str]] = {
    "missing": ({"a": floats(2), "b": floats(2)}, {"a": floats(2)}, MismatchError, "`b` is in the base and missing in"),
    "extra": ({"a": floats(2)}, {"a": floats(2), "b": floats(2)}, MismatchError, "`b` is in"),
    "shape": ({"a": floats(2, 3)}, {"a": floats(3, 2)}, MismatchError, "`a` is [2, 3] in the base and [3, 2] in"),
    "rows without config": ({"a": floats(2, 3)}, {"a": floats(3, 3)}, MismatchError, "`a` is [2, 3] in the base"),
    "dtype": (
        {"a": floats(2)},
        {"a": floats(2).astype(np.int32)},
        MismatchError,
        "`a` is float32 in the base and int32 in",
    ),
    "NaN in the base": (
        {"a": with_value(np.nan)},
        {"a": floats(5000)},
        NonFiniteError,
        "holds 1 NaN or infinite value",
    ),
    "NaN in the tuned": (
        {"a": floats(5000)},
        {"a": with_value(np.nan)},
        NonFiniteError,
        "holds 1 NaN or infinite value",
    ),
    "infinity in both": ({"a": with_value(np.inf)}, {"a": with_value(np.inf)}, NonFiniteError, "`a` in"),
    "float8": (
        {"a": floats(2).astype(ml_dtypes.float8_e4m3fn)},
        {"a": floats(2).astype(ml_dtypes.float8_e4m3fn)},
        CheckpointError,
        "`a` in",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("method", [AdaDare(), Dare(), HALF], ids=lambda method: method.name)
def test_what_disagrees_is_refused_by_name_and_leaves_nothing(
    case: str, method: sculpt.AdaDare, make_checkpoint: Make, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    base, tuned, kind, told = REFUSED[case]
    if case == "float8":
        for side in ("b", "t"):
            (tmp_path / side).mkdir()
            save_file({"a": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / side / "model.safetensors")
    else:
        make_checkpoint("b", base)
        make_checkpoint("t", tuned)
    with pytest.raises(kind) as failure:
        fuse(tmp_path / "b", tmp_path / "t", tmp_path / "out", method=method)
    assert told in failure.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "t"]


def test_nan_in_a_copied_tensor_is_refused_too(make_checkpoint: Make, tmp_path: Path) -> None:
    sides = [make_checkpoint(s, {"w": floats(3) + v, "n": with_value(np.nan)}) for s, v in (("b", 0), ("t", 1))]
    with pytest.raises(NonFiniteError, match="`n` in"):
        fuse(sides[0], sides[1], tmp_path / "out", selection=sculpt.Selection(include=("w",)))


@pytest.mark.parametrize("method", [AdaDare(sparsity=0.5), HALF], ids=lambda method: method.name)
def test_policies_allow_by_name(
    method: sculpt.AdaDare, make_checkpoint: Make, tensors_of: Read, tmp_path: Path
) -> None:
    base = {"a": floats(5000), "gone": floats(2), "shape": floats(2, 3), "half": floats(40)}
    tuned = {
        "a": with_value(np.nan) + np.float32(0.1),
        "shape": floats(3, 3),
        "half": (floats(40) + 1).astype(np.float16),
        "new": floats(2),
    }
    policies = sculpt.Policies(
        on_missing="keep-base", on_extra="take-tuned", on_mismatch="take-tuned", on_dtype="convert", on_nonfinite="keep"
    )
    fuse(make_checkpoint("b", base), make_checkpoint("t", tuned), tmp_path / "out", policies=policies, method=method)
    out = tensors_of(tmp_path / "out")
    assert out.keys() == base.keys() | tuned.keys()
    assert np.flatnonzero(np.isnan(out["a"])).tolist() == [4097]
    assert out["gone"].tobytes() == base["gone"].tobytes()
    assert out["shape"].tobytes() == tuned["shape"].tobytes()
    assert out["half"].dtype == np.float32


def test_an_overflow_of_the_output_dtype_is_refused(make_checkpoint: Make, tmp_path: Path) -> None:
    sides = [make_checkpoint(s, {"w": np.full(50, v, np.float16)}) for s, v in (("b", 0), ("t", 60000))]
    with pytest.raises(SculptError, match="`w` overflows float16"):
        fuse(sides[0], sides[1], tmp_path / "out", method=Dare(sparsity=0.5))
