"""A patch makes the very model that it was made of, of the very base; what else it is given is refused by name."""

from __future__ import annotations

import filecmp
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import sculpt
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.checkpoint import Checkpoint, open_checkpoint
from sculpt.fusion.errors import SculptError
from sculpt.fusion.patch.coder import encode
from sculpt.fusion.patch.contexts import DrawnHint, Plain, Seed
from sculpt.fusion.patch.decoder import decode
from sculpt.fusion.patch.file import PatchFile
from sculpt.fusion.patch.forms import form_of
from sculpt.fusion.patch.frames import SCALED, OtherBaseError, coded
from sculpt.fusion.patch.look import check_alone, check_with_base, figures
from sculpt.fusion.patch.pack import pack
from sculpt.fusion.patch.scales import read
from sculpt.fusion.ref import with_patches
from sculpt.fusion.run.fuse import execute
from sculpt.fusion.run.prepared import prepare
from sculpt.fusion.run.settings import Settings

from . import oracle

Pair = Callable[..., tuple[Path, Path]]
Make = Callable[..., Path]


def bits(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each tensor of a folder."""
    return {name: data for file in folder.glob("*.safetensors") for name, (_, data) in oracle.entries(file)[0].items()}


def assert_same_folder(first: Path, second: Path) -> None:
    names = sorted(path.relative_to(first).as_posix() for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second).as_posix() for path in second.rglob("*") if path.is_file())
    _, differing, missing = filecmp.cmpfiles(first, second, names, shallow=False)
    assert (differing, missing) == ([], [])


def fused(pair: tuple[Path, Path], output: Path, method: Any, **options: Any) -> Path:
    """Fuse with a curvature that differs from column to column, and of the embedding from row to row too."""
    base, sft = pair
    settings = options.pop("settings", Settings())
    prepared = prepare(base, [sft], output=output, method=method, settings=settings)
    rng = np.random.default_rng(3)
    curvature = {}
    for step in prepared.plan.steps:
        terms = [rng.random((1,) * (len(step.shape) - 1) + step.shape[-1:]) * 50]
        if "embed" in step.name:
            terms.append(rng.random((step.shape[0], 1)) * 50)
        curvature[step.name] = (None, Curvature(terms=tuple(terms), num_tokens=9))
    execute(prepared, curvature=curvature if method.uses_curvature else None)
    return output


ALL = {
    "f64": np.linspace(-1, 1, 7),
    "i64": np.arange(5),
    "i16": np.arange(-3, 3, dtype=np.int16),
    "u8": np.arange(9, dtype=np.uint8),
    "bool": np.array([True, False, True]),
    "f8": np.arange(6).astype(ml_dtypes.float8_e4m3fn),
    "scalar": np.array(3.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "special": np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3e38], np.float32),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_apply_writes_the_very_files(dtype: str, make_pair: Pair, tmp_path: Path) -> None:
    base, sft = make_pair(dtype)
    (sft / "notes").mkdir()
    (sft / "notes" / "how.txt").write_text("of its own")
    size = sculpt.pack(base, sft, output=tmp_path / "p.safetensors")
    assert size == (tmp_path / "p.safetensors").stat().st_size
    assert sculpt.apply_patch(base, tmp_path / "p.safetensors", output=tmp_path / "out")
    assert_same_folder(sft, tmp_path / "out")
    assert oracle.read(tmp_path / "p.safetensors", base_entries(base)) == bits(sft)


def base_entries(base: Path) -> dict[str, Any]:
    return {name: found for file in base.glob("*.safetensors") for name, found in oracle.entries(file)[0].items()}


def test_a_model_may_differ_from_its_base_in_any_way(make_checkpoint: Make, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((6, 4)).astype(np.float32)
    base = make_checkpoint("base", {**ALL, "grown": rows, "gone": rows, "wide": rows.astype(ml_dtypes.bfloat16)})
    changed = {name: tensor[::-1].copy() if tensor.ndim == 1 else tensor for name, tensor in ALL.items()}
    more = np.concatenate([rows + np.float32(0.01), rows[:2]])
    model = make_checkpoint("model", {**changed, "grown": more, "new": rows[:3], "wide": rows})
    patch = tmp_path / "p.safetensors"
    sculpt.pack(base, model, output=patch)
    sculpt.apply_patch(base, patch, output=tmp_path / "out")
    assert_same_folder(model, tmp_path / "out")
    assert oracle.read(patch, base_entries(base)) == bits(model)
    how = {figure.name: figure.how for figure in figures(PatchFile(patch))}
    assert (how["new"], how["grown"], how["scalar"], how["empty"]) == ("whole", "differences", "none", "none")


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_rows_and_columns_that_differ_by_more_have_contexts(kind: Any, make_checkpoint: Make, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((160, 128)) * 0.05).astype(kind)
    sizes = np.exp2(rng.integers(-14, -6, (160, 1))) * np.exp2(rng.integers(-2, 2, 128))
    tuned = (values.astype(np.float32) + sizes * rng.standard_normal(values.shape)).astype(kind)
    tuned[3, 4], tuned[5] = np.nan, np.inf
    base, model = make_checkpoint("base", {"w": values}), make_checkpoint("model", {"w": tuned})
    sculpt.pack(base, model, output=tmp_path / "p.safetensors")
    assert PatchFile(tmp_path / "p.safetensors").entry("tensor/w")[36] == SCALED
    assert oracle.read(tmp_path / "p.safetensors", base_entries(base)) == bits(model)
    sculpt.apply_patch(base, tmp_path / "p.safetensors", output=tmp_path / "out")
    assert_same_folder(model, tmp_path / "out")
    words = [each.reshape(-1).view(f"u{values.itemsize}") for each in (values, tuned)]
    dtype = {2: "BF16" if kind is ml_dtypes.bfloat16 else "F16", 4: "F32"}[values.itemsize]
    scaled, plain = (len(coded(*words, dtype, 0, columns=columns).code) for columns in (128, 0))
    assert scaled < 0.97 * plain


def test_a_frame_that_begins_within_a_row_has_the_contexts_of_its_own() -> None:
    rng = np.random.default_rng(1)
    base = rng.standard_normal(20_000).astype(np.float32)
    size = np.exp2(rng.integers(-14, -6, 201)).repeat(100)[50:20_050]
    model = base + (size * rng.standard_normal(20_000)).astype(np.float32)
    words = base.view(np.uint32), model.view(np.uint32)
    frame = coded(*words, "F32", 50, columns=100)
    assert frame.code[0] == SCALED
    hint, rest = read(np.frombuffer(frame.code, np.uint8)[1:], 50, 20_000)
    out = np.empty_like(words[0])
    decode(rest, words[0], form_of("F32"), hint, 50, out)
    assert out.tobytes() == model.tobytes()
    assert len(hint.rows) == 201
    for cut in (0, 3, 4, 204, 304):
        with pytest.raises(SculptError, match="its rows and columns are cut off"):
            read(np.frombuffer(frame.code, np.uint8)[1 : 1 + cut], 50, 20_000)
    with pytest.raises(SculptError, match="its rows and columns are cut off"):
        read(np.zeros(500, np.uint8), 50, 20_000)


def test_a_tensor_of_several_frames_is_read_from_any_element(make_checkpoint: Make, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((2, 1_100_000)) * 0.05).astype(ml_dtypes.bfloat16)
    tuned = values.copy()
    tuned[1, 5000:] += (rng.standard_normal(1_095_000) * 1e-3).astype(ml_dtypes.bfloat16)
    base, model = make_checkpoint("base", {"w": values}), make_checkpoint("model", {"w": tuned})
    sculpt.pack(base, model, output=tmp_path / "p.safetensors")
    opened = open_checkpoint(f"{base}/+{tmp_path / 'p.safetensors'}")
    flat = tuned.reshape(-1).view(np.uint16)
    for start, stop in (
        (0, 5),
        (1 << 20, (1 << 20) + 3),
        ((1 << 20) - 2, (1 << 21) + 2),
        (2_199_999, 2_200_000),
        (7, 7),
    ):
        np.testing.assert_array_equal(opened.read("w", start, stop).view(np.uint16), flat[start:stop])
    assert opened.fingerprint == Checkpoint(model).fingerprint
    assert opened.tensors["w"].file == tmp_path / "p.safetensors"  # not the base's, which holds other values


@pytest.mark.parametrize("letter", ["BF16", "F32", "U8", "I64"])
def test_any_words_come_back(letter: str) -> None:
    form, rng = form_of(letter), np.random.default_rng(0)
    top = np.iinfo(form.word).max
    for count in (1, 7, 8, 9, 5000):
        base = rng.integers(0, top, count, form.word, endpoint=True)
        for target in (
            rng.integers(0, top, count, form.word, endpoint=True),
            base ^ form.word.type(1),
            np.where(rng.random(count) < 0.999, base, ~base),
            np.full(count, top, form.word),
        ):
            code = encode(base, target, form, Plain(), 0)
            found = np.empty_like(base)
            decode(np.frombuffer(code, np.uint8), base, form, Plain(), 0, found)
            np.testing.assert_array_equal(found, target)


@pytest.mark.parametrize("count", [4095, 4097, 20_011])
@pytest.mark.parametrize("letter", ["BF16", "F32"])
def test_what_was_drawn_and_has_no_table_is_the_bases(letter: str, count: int) -> None:
    form, rng = form_of(letter), np.random.default_rng(1)
    is_small = rng.random(count) < 0.5
    exponents = np.where(is_small, 100, 120).astype(np.uint64) << np.uint64(form.shift)
    base = (exponents + rng.integers(0, 1 << form.shift, count, np.uint64)).astype(form.word)
    hint = DrawnHint(seed=Seed(seed=5, name="x"), keep=0.3)
    drawn = oracle.uniform({"seed": 5, "name": "x", "stream": 0}, 0, count)
    steps = rng.integers(1, 200, count).astype(form.word)  # most with bits after their tokens
    target = np.where((np.array(drawn, np.float32) < np.float32(0.3 * 2**32)) & ~is_small, base + steps, base)
    code = encode(base, target, form, hint, 0)
    tables = np.repeat(*np.frombuffer(code, np.uint8)[6 : 8 + 2 * code[5]].reshape(-1, 2).T + np.array([[0], [1]]))
    assert tables[:16].tolist() == [0] + [255] * 15  # of the smaller exponent nothing differs
    found = np.empty_like(base)
    decode(np.frombuffer(code, np.uint8), base, form, hint, 0, found)
    np.testing.assert_array_equal(found, target)


WITHOUT_SHUFFLES = """
import sys
from pathlib import Path
import numpy as np
from sculpt.fusion.kernels.source import elements
from sculpt.fusion.patch.contexts import DrawnHint, Seed
from sculpt.fusion.patch.decoder import decode
from sculpt.fusion.patch.forms import form_of
elements.SHUFFLES.clear()
folder = Path(sys.argv[1])
base = np.fromfile(folder / "base", np.uint16)
found, hint = np.empty_like(base), DrawnHint(seed=Seed(seed=5, name="x"), keep=0.3)
decode(np.fromfile(folder / "code", np.uint8), base, form_of("BF16"), hint, 0, found)
found.tofile(folder / "found")
"""


def test_a_processor_that_puts_no_bytes_in_order_decodes_the_same(tmp_path: Path) -> None:
    """Kernels are compiled for it in a process, and a cache, of its own."""
    form, rng, hint = form_of("BF16"), np.random.default_rng(2), DrawnHint(seed=Seed(seed=5, name="x"), keep=0.3)
    base = rng.integers(0, 65536, 5000, np.uint16)
    drawn = np.array(oracle.uniform({"seed": 5, "name": "x", "stream": 0}, 0, base.size), np.float32)
    target = np.where(drawn < np.float32(0.3 * 2**32), base ^ 1, base).astype(np.uint16)
    (tmp_path / "code").write_bytes(encode(base, target, form, hint, 0))
    base.tofile(tmp_path / "base")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SHUFFLES, tmp_path],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.fromfile(tmp_path / "found", np.uint16), target)


METHODS = {
    "dare": sculpt.Dare(sparsity=0.6),
    "adadare": sculpt.AdaDare(sparsity=0.8, gamma=0.5),
    "exact": sculpt.AdaDare(sparsity=0.5, gamma=1.0, allocation="exact"),
    "interpolation": sculpt.AdaDare(sparsity=0.0, gamma=0.5),
    "ties": sculpt.Ties(density=0.3),
    "slerp": sculpt.Slerp(t=0.3),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_fuse_that_emits_a_patch_makes_the_folder_that_a_fuse_writes(
    name: str, make_pair: Pair, tmp_path: Path
) -> None:
    pair, method = make_pair("bfloat16" if name != "exact" else "float16"), METHODS[name]
    whole = fused(pair, tmp_path / "fused", method)
    # Tiles that end anywhere, where no sums are taken over them, on two threads.
    settings = Settings(emit="patch", tile_elements=1000 if name == "dare" else None, threads=2)
    patch = fused(pair, tmp_path / "fused.safetensors", method, settings=settings)
    sculpt.apply_patch(pair[0], patch, output=tmp_path / "out")
    assert_same_folder(whole, tmp_path / "out")
    sculpt.verify(tmp_path / "out", pair)
    assert oracle.read(patch, base_entries(pair[0])) == bits(whole)
    seeded = {figure.how for figure in figures(PatchFile(patch))} - {"none"}
    assert seeded == ({name.replace("exact", "adadare")} if name in ("dare", "adadare", "exact") else {"differences"})


@pytest.mark.parametrize("name", ["dare", "adadare", "exact"])
def test_another_strength_gives_the_bits_of_a_fuse_with_it(name: str, make_pair: Pair, tmp_path: Path) -> None:
    pair, method = make_pair(), METHODS[name]
    patch = fused(pair, tmp_path / "p.safetensors", method, settings=Settings(emit="patch", seed=5))
    option = "scale" if name == "dare" else "gamma"
    wanted = fused(pair, tmp_path / "wanted", replace(method, **{option: 0.7}), settings=Settings(seed=5))
    assert not sculpt.apply_patch(pair[0], patch, output=tmp_path / "out", gamma=0.7)
    assert bits(tmp_path / "out") == bits(wanted)
    assert sculpt.apply_patch(pair[0], patch, output=tmp_path / "own", gamma=getattr(method, option))


def test_a_fine_tune_is_scaled_as_task_arithmetic_scales_it(make_pair: Pair, tmp_path: Path) -> None:
    base, sft = make_pair()
    sculpt.pack(base, sft, output=tmp_path / "p.safetensors")
    sculpt.fuse(base, sft, output=tmp_path / "wanted", method=sculpt.TaskArithmetic(scale=0.3))
    sculpt.apply_patch(base, tmp_path / "p.safetensors", output=tmp_path / "out", gamma=0.3)
    assert bits(tmp_path / "out") == bits(tmp_path / "wanted")


def test_a_strength_that_is_not_known_is_refused_by_the_tensor(make_pair: Pair, tmp_path: Path) -> None:
    pair = make_pair()
    patch = fused(pair, tmp_path / "p.safetensors", METHODS["ties"], settings=Settings(emit="patch"))
    with pytest.raises(SculptError, match=r"of `model\.\S+` it holds the result alone"):
        sculpt.apply_patch(pair[0], patch, output=tmp_path / "out", gamma=0.5)
    with pytest.raises(SculptError, match="`gamma` must be larger than 0"):
        sculpt.apply_patch(pair[0], patch, output=tmp_path / "out", gamma=0.0)
    assert not (tmp_path / "out").exists()


def changed(folder: Path, to: Path, name: str, element: int) -> Path:
    """Return a copy of a one-file checkpoint with the lowest bit of an element changed."""
    to.mkdir()
    opened = Checkpoint(folder)
    tensors = {key: opened.read(key).reshape(info.shape).copy() for key, info in opened.tensors.items()}
    tensors[name].reshape(-1).view(np.uint16)[element] ^= 1
    save_file(tensors, to / "model.safetensors")
    (to / "config.json").write_bytes((folder / "config.json").read_bytes())
    return to


def test_another_base_is_refused_by_the_tensor(make_pair: Pair, tmp_path: Path) -> None:
    base, sft = make_pair(shards=1)
    patch = tmp_path / "p.safetensors"
    sculpt.pack(base, sft, output=patch)
    name = "model.layers.1.mlp.up_proj.weight"
    for element in (0, 40, 72 * 32 - 1):
        other = changed(base, tmp_path / f"other{element}", name, element)
        with pytest.raises(OtherBaseError, match=name.replace(".", r"\.")):
            sculpt.apply_patch(other, patch, output=tmp_path / "out")
    with pytest.raises(OtherBaseError, match=r"`model\.\S+` is another in"):
        check_with_base(with_patches(sft, [patch]))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_base_that_differs_where_no_sample_looks_is_refused_too(make_checkpoint: Make, tmp_path: Path) -> None:
    values = np.zeros(30_000, ml_dtypes.bfloat16)
    base, model = (
        make_checkpoint("base", {"w": values, "v": values}),
        make_checkpoint("m", {"w": values + 1, "v": values}),
    )
    sculpt.pack(base, model, output=tmp_path / "p.safetensors")
    for name in ("w", "v"):  # changed by the patch, and left alone
        other = {key: values.copy() for key in ("w", "v")}
        other[name][5000] = 1
        folder = make_checkpoint(f"other-{name}", other)
        with pytest.raises(OtherBaseError, match=f"`{name}` is not the one that .* was made from"):
            sculpt.apply_patch(folder, tmp_path / "p.safetensors", output=tmp_path / "out")


def test_no_flipped_bit_and_no_cut_goes_unseen(make_pair: Pair, tmp_path: Path) -> None:
    pair = make_pair(shards=1)
    file = fused(pair, tmp_path / "p.safetensors", METHODS["adadare"], settings=Settings(emit="patch"))
    data, rng = file.read_bytes(), random.Random(0)
    wrong = tmp_path / "w.safetensors"
    for number in range(60):
        content = bytearray(data)
        if number % 6:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            del content[rng.randrange(len(content)) :]
        wrong.write_bytes(content)
        try:
            check_alone(wrong)
        except SculptError:
            continue
        # What padding and the order of a header's keys say is all that may be another.
        assert oracle.read(wrong, base_entries(pair[0])) == oracle.read(file, base_entries(pair[0]))


def test_patches_of_one_base_stack_where_they_change_other_tensors(make_checkpoint: Make, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one, two = (rng.standard_normal((40, 8)).astype(np.float32) for _ in range(2))
    base = make_checkpoint("base", {"a": one, "b": two})
    make_checkpoint("first", {"a": one + np.float32(0.01), "b": two})
    make_checkpoint("second", {"a": one, "b": two * np.float32(1.01), "c": one})
    make_checkpoint("third", {"a": one, "b": two + np.float32(0.02)})
    files = {name: tmp_path / f"{name}.safetensors" for name in ("first", "second", "third")}
    for name, file in files.items():
        sculpt.pack(base, tmp_path / name, output=file)
    for order in (("first", "second"), ("second", "first")):
        output = tmp_path / "-".join(order)
        sculpt.apply_patch(base, *(files[name] for name in order), output=output)
        made = bits(output)
        assert made["a"] == bits(tmp_path / "first")["a"]
        assert (made["b"], made["c"]) == (bits(tmp_path / "second")["b"], bits(tmp_path / "second")["c"])
    both = [files["second"], files["third"]]
    with pytest.raises(SculptError, match=r"`b` is changed by .*third.* and by a patch before it, .*second"):
        sculpt.apply_patch(base, *both, output=tmp_path / "clash")
    sculpt.apply_patch(base, files["first"], files["third"], output=tmp_path / "sum", add=True)
    sculpt.fuse(base, [tmp_path / "first", tmp_path / "third"], output=tmp_path / "ta", method=sculpt.TaskArithmetic())
    assert bits(tmp_path / "sum") == bits(tmp_path / "ta")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
def test_patches_of_other_tensors_stack_in_dtypes_that_nothing_adds_up(dtype: torch.dtype, tmp_path: Path) -> None:
    a, b, c = (torch.randn(40, 8, generator=torch.Generator().manual_seed(k)).to(dtype) for k in range(3))
    for name, tensors in {"base": (a, b), "first": (c, b), "second": (a, c), "both": (c, c.clone())}.items():
        (tmp_path / name).mkdir()
        save_torch(dict(zip("ab", tensors, strict=True)), tmp_path / name / "model.safetensors")
    files = [tmp_path / f"{name}.safetensors" for name in ("first", "second")]
    for file in files:
        sculpt.pack(tmp_path / "base", file.with_suffix(""), output=file)
    sculpt.apply_patch(tmp_path / "base", *files, output=tmp_path / "made")
    assert bits(tmp_path / "made") == bits(tmp_path / "both")
    with pytest.raises(SculptError, match="which sculpt cannot fuse"):
        sculpt.apply_patch(tmp_path / "base", *files, output=tmp_path / "sum", add=True)


def test_a_patch_of_a_patched_model_follows_it(make_checkpoint: Make, tmp_path: Path) -> None:
    one = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    base = make_checkpoint("base", {"a": one})
    make_checkpoint("first", {"a": one * np.float32(1.01)})
    second = make_checkpoint("second", {"a": one * np.float32(1.02)})
    files = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    sculpt.pack(base, tmp_path / "first", output=files[0])
    sculpt.pack(f"{base}+{files[0]}", second, output=files[1])
    sculpt.apply_patch(base, *files, output=tmp_path / "out")
    assert bits(tmp_path / "out") == bits(second)
    with pytest.raises(OtherBaseError, match="`a` is another in"):
        sculpt.apply_patch(base, files[1], output=tmp_path / "wrong")


def test_a_patch_over_a_patched_base_is_applied_to_it(make_checkpoint: Make, tmp_path: Path) -> None:
    one = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    base = make_checkpoint("base", {"a": one, "b": one})
    first, second = make_checkpoint("first", {"a": 2 * one, "b": one}), make_checkpoint("second", {"a": one, "b": -one})
    for model in (first, second):
        sculpt.pack(base, model, output=tmp_path / f"{model.name}.safetensors")
    patched = f"{base}+{tmp_path / 'first.safetensors'}"
    assert not sculpt.apply_patch(patched, tmp_path / "second.safetensors", output=tmp_path / "both")
    assert bits(tmp_path / "both") == {"a": bits(first)["a"], "b": bits(second)["b"]}
    sculpt.apply_patch(patched, *[tmp_path / "second.safetensors"] * 2, output=tmp_path / "twice", add=True)
    assert bits(tmp_path / "twice") == {"a": bits(first)["a"], "b": (-3 * one).tobytes()}


def test_a_patched_base_is_packed_as_its_folder_is(make_pair: Pair, tmp_path: Path) -> None:
    base, sft = make_pair()
    (sft / "notes.txt").write_text("of its own")
    files = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    sculpt.pack(base, sft, output=files[0])
    sculpt.pack(base, f"{base}+{files[0]}", output=files[1])
    assert filecmp.cmp(*files, shallow=False)


def test_what_is_fused_over_a_patched_base_is_laid_out_as_over_its_folder(make_pair: Pair, tmp_path: Path) -> None:
    base, sft = make_pair(shards=1)
    (sft / "notes.txt").write_text("of its own")
    sculpt.pack(base, sft, output=tmp_path / "p.safetensors")
    for name, first in (("wanted", sft), ("out", f"{base}+{tmp_path / 'p.safetensors'}")):
        sculpt.fuse(first, base, output=tmp_path / name, method=sculpt.Dare())
    wanted, found = (sorted(file.name for file in (tmp_path / name).iterdir()) for name in ("wanted", "out"))
    assert found == wanted
    assert bits(tmp_path / "out") == bits(tmp_path / "wanted")


def test_what_is_left_out_of_a_patch_is_told_with_the_reason(make_pair: Pair, tmp_path: Path) -> None:
    base, sft = make_pair()
    (sft / "training_args.bin").touch()
    (sft / ".hidden").touch()
    found = pack(base, sft, output=tmp_path / "p.safetensors")
    assert found.left == {".hidden": "hidden, a credential or a log", "training_args.bin": "left by training"}


def test_a_header_of_other_tensors_is_found_by_verifying(
    make_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, sft = make_pair(shards=1)
    one = tmp_path / "one.safetensors"
    save_file({"one": np.zeros(1, np.float32)}, one)
    monkeypatch.setattr("sculpt.fusion.patch.pack.headers_of", lambda _: {"model.safetensors": one.read_bytes()[:-4]})
    pack(base, sft, output=tmp_path / "p.safetensors")
    with pytest.raises(SculptError, match="it has another `one` than the contents"):
        check_with_base(with_patches(base, [tmp_path / "p.safetensors"]))


def test_names_that_no_patch_has_are_refused(make_pair: Pair, tmp_path: Path) -> None:
    base, sft = make_pair()
    with pytest.raises(SculptError, match=r"p.bin` must be a `.safetensors` file, as every patch is"):
        sculpt.pack(base, sft, output=tmp_path / "p.bin")
    with pytest.raises(SculptError, match=r"p.bin` must be a `.safetensors` file, as every patch is"):
        prepare(base, [sft], output=tmp_path / "p.bin", method=sculpt.Dare(), settings=Settings(emit="patch"))
    with pytest.raises(SculptError, match="is a folder, and a patch is a file"):
        PatchFile(base)


def test_a_folder_that_was_applied_is_replaced_only_if_sculpt_wrote_it(make_pair: Pair, tmp_path: Path) -> None:
    base, sft = make_pair()
    sculpt.pack(base, sft, output=tmp_path / "p.safetensors")
    with pytest.raises(SculptError, match="is not a checkpoint that sculpt wrote") as caught:
        sculpt.apply_patch(base, tmp_path / "p.safetensors", output=sft, overwrite=True)
    assert "remove it first" in str(caught.value.hint)


def test_commands_take_a_patched_base_as_they_take_its_folder(make_pair: Pair, tmp_path: Path) -> None:
    base, sft = make_pair()
    sculpt.pack(base, sft, output=tmp_path / "p.safetensors")
    patched = f"{base}/+{tmp_path / 'p.safetensors'}"
    sculpt.fuse(base, sft, output=tmp_path / "wanted", method=sculpt.Dare())
    sculpt.fuse(base, patched, output=tmp_path / "out", method=sculpt.Dare())
    assert bits(tmp_path / "out") == bits(tmp_path / "wanted")
    assert all(tensor.changed == 0 for tensor in sculpt.diff(sft, patched).tensors)
    with pytest.raises(SculptError, match="is the input"):
        sculpt.fuse(base, patched, output=base, overwrite=True)
    with pytest.raises(SculptError, match="is a patch"):
        sculpt.diff(base, tmp_path / "p.safetensors")


def test_load_gives_the_model_that_transformers_loads_from_its_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    for name, strength in (("base", 0.0), ("sft", 0.05)):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += strength * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        model.save_pretrained(tmp_path / name)
    config = json.loads((tmp_path / "sft" / "config.json").read_text())
    (tmp_path / "sft" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.25}))
    sculpt.pack(tmp_path / "base", tmp_path / "sft", output=tmp_path / "p.safetensors")
    loaded = sculpt.load(tmp_path / "base", tmp_path / "p.safetensors")
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    assert loaded.config.rms_norm_eps == 0.25
    for name, parameter in wanted.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], parameter)


def test_files_of_torch_come_back_as_safetensors_and_so_it_is_told(make_checkpoint: Make, tmp_path: Path) -> None:
    values = {"a": np.arange(6, dtype=np.float32), "b": np.ones(3, np.float32)}
    base = make_checkpoint("base", values)
    model = tmp_path / "model"
    model.mkdir()
    for name, array in values.items():
        torch.save({name: torch.from_numpy(array + 1)}, model / f"pytorch_model-{name}.bin")
    index = {"weight_map": {name: f"pytorch_model-{name}.bin" for name in values}}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    sculpt.pack(base, model, output=tmp_path / "p.safetensors")
    assert not sculpt.apply_patch(base, tmp_path / "p.safetensors", output=tmp_path / "out")
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".safetensors"}
    assert bits(tmp_path / "out") == {name: (array + 1).tobytes() for name, array in values.items()}


def test_an_adapter_is_not_packed(make_checkpoint: Make, tmp_path: Path) -> None:
    base = make_checkpoint("base", {"a": np.zeros((2, 2), np.float32)})
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(SculptError, match="is an adapter"):
        sculpt.pack(base, tmp_path / "adapter", output=tmp_path / "p.safetensors")


def test_codes_are_packed_as_they_are_and_not_scaled(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folders = tmp_path / "base", tmp_path / "model"
    for folder, step in zip(folders, (0, 1), strict=True):
        folder.mkdir()
        codes = (rng.integers(-8, 8, (8, 8)) + step).astype(ml_dtypes.float8_e4m3fn)
        scales = np.full((1, 1), 0.25 + step, np.float32)
        save_file({"w.weight": codes, "w.weight_scale_inv": scales}, folder / "model.safetensors")
        config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
        (folder / "config.json").write_text(json.dumps(config))
    base, model = folders
    patch = tmp_path / "p.safetensors"
    sculpt.pack(base, model, output=patch)
    assert sculpt.apply_patch(base, patch, output=tmp_path / "out")
    assert_same_folder(model, tmp_path / "out")
    assert all(tensor.changed == 0 for tensor in sculpt.diff(model, f"{base}/+{patch}").tensors)
    with pytest.raises(SculptError, match="is quantised: its codes can have no other strength"):
        sculpt.apply_patch(base, patch, output=tmp_path / "half", gamma=0.5)
    with pytest.raises(SculptError, match="is quantised, and a patch of a fuse is over plain weights") as caught:
        prepare(base, [model], output=tmp_path / "e.safetensors", method=sculpt.Dare(), settings=Settings(emit="patch"))
    assert "`sculpt pack` it over its base" in str(caught.value.hint)


@pytest.mark.parametrize("command", ["verify", "attest", "report"])
def test_what_wants_a_folder_of_sculpts_refuses_a_patched_base_by_name(
    command: str, make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from sculpt.cli.app import main

    zeros = np.zeros((2, 2), np.float32)
    base, model = make_checkpoint("base", {"a": zeros}), make_checkpoint("model", {"a": zeros + 1})
    sculpt.pack(base, model, output=tmp_path / "p.safetensors")
    monkeypatch.setattr("sys.argv", ["sculpt", command, f"{base}/+{tmp_path / 'p.safetensors'}"])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "is a patch over its base, and no folder of files" in " ".join(capsys.readouterr().err.split())
