"""A base protected on several sides, each with a weight, and on the general set that ships."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sculpt
import torch
import transformers
import typer
from sculpt.cli import calibrate, fuse, merge, rerun
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.arithmetic.general_sides import weighted_sum
from sculpt.fusion.errors import CurvatureError, DataError, MethodError, SculptError
from sculpt.fusion.record.recipe import recipe_text
from sculpt.fusion.run.calibration import Calibration, GeneralSide
from typer.testing import CliRunner, Result

from . import zoo

Read = Callable[[Path], dict[str, np.ndarray]]
Q = "model.layers.0.self_attn.q_proj.weight"
PLAIN = sculpt.AdaDare(gamma=1, sparsity=0)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a base, a fine-tune of it, data for the target, and two general sides of unequal size."""
    folder = tmp_path_factory.mktemp("sides")
    base, target = zoo.settle(zoo.ALL["llama"], folder)
    generator = torch.Generator().manual_seed(3)
    made = {"base": base, "tuned": folder / "sft", "target": target}
    for name, count in (("one", 3), ("two", 9)):
        made[name] = folder / f"{name}.jsonl"
        made[name].write_text("\n".join(json.dumps(zoo.tokens(row, generator)) for row in range(count)))
    model = transformers.LlamaForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(made["tuned"])
    for side, data in (("tuned", "target"), ("base", "one"), ("base", "two")):
        made[f"{data} measured"] = folder / f"{data}.safetensors"
        sculpt.calibrate(made[side], data=made[data], output=made[f"{data} measured"], full=["*"])
    return made


def fused(found: dict[str, Path], output: Path, protect: Any, **given: Any) -> bytes:
    options = {"data": found["target"], "method": PLAIN, **given, "protect": protect}
    sculpt.fuse(found["base"], found["tuned"], output=output, **options)
    return b"".join(file.read_bytes() for file in sorted(output.glob("*.safetensors")))


def test_completions_alone_count_of_the_target_and_all_tokens_of_what_protects(
    found: dict[str, Path], tmp_path: Path
) -> None:
    def labelled(side: str) -> Path:
        rows = [json.loads(line) for line in found[side].read_text().splitlines()]
        for row in rows:
            half = len(row["input_ids"]) // 2
            row["labels"] = [-100] * half + row["input_ids"][half:]
        (tmp_path / side).write_text("\n".join(map(json.dumps, rows)))
        return (tmp_path / side).rename(tmp_path / f"{side}.jsonl")

    target, general = labelled("target"), labelled("one")
    measured = tmp_path / "answers.safetensors"
    sculpt.calibrate(found["tuned"], data=target, output=measured, full=["*"], count="completion")
    expected = fused(found, tmp_path / "files", found["one measured"], data=None, hessian=measured)
    given = Calibration(data=target, protect=general, count="completion")
    settings = sculpt.Settings(protection=sculpt.Protection())
    sculpt.fuse(
        found["base"], found["tuned"], output=tmp_path / "out", method=PLAIN, calibration=given, settings=settings
    )
    assert b"".join(file.read_bytes() for file in sorted((tmp_path / "out").glob("*.safetensors"))) == expected


def test_sides_are_weighted_means_of_their_own_tokens(found: dict[str, Path], tmp_path: Path, tensors_of: Read) -> None:
    fused(found, tmp_path / "out", [found["one"], GeneralSide(source=found["two"], weight=3)])

    def mean(side: str) -> np.ndarray:
        curvature = sculpt.DiagonalHessian.load(found[f"{side} measured"])[Q]
        assert curvature.gram is not None
        return curvature.gram.astype(np.float64) / curvature.num_tokens

    def ridged(matrix: np.ndarray) -> np.ndarray:
        return matrix + 1e-3 * np.diag(matrix).mean() * np.eye(len(matrix))

    a, g = ridged(mean("target")), ridged(mean("one") + 3 * mean("two"))
    base, tuned = (tensors_of(found[side])[Q].astype(np.float64) for side in ("base", "tuned"))
    expected = base + (tuned - base) @ a @ np.linalg.inv(a + g)
    np.testing.assert_allclose(tensors_of(tmp_path / "out")[Q], expected, atol=1e-5)


def test_data_and_statistics_give_the_same_bytes(found: dict[str, Path], tmp_path: Path) -> None:
    sides = [found["one"], GeneralSide(source=found["two"], weight=3)]
    known = [found["one measured"], GeneralSide(source=found["two measured"], weight=3)]
    first = fused(found, tmp_path / "data", sides)
    assert fused(found, tmp_path / "mixed", [sides[0], known[1]]) == first
    assert fused(found, tmp_path / "known", known, data=None, hessian=found["target measured"]) == first


def test_one_side_of_some_weight_is_that_much_more_of_it(
    found: dict[str, Path], tmp_path: Path, tensors_of: Read
) -> None:
    fused(found, tmp_path / "weighted", GeneralSide(source=found["two"], weight=4))
    fused(found, tmp_path / "plain", found["two"], protection=sculpt.Protection(weight=4))
    fused(found, tmp_path / "thrice", [found["two"], GeneralSide(source=found["two measured"], weight=3)])
    plain = tensors_of(tmp_path / "plain")
    for other in ("weighted", "thrice"):
        for name, array in tensors_of(tmp_path / other).items():
            np.testing.assert_allclose(array, plain[name], atol=1e-5)


@pytest.mark.parametrize("curvature", ["full", "diagonal"])
def test_what_one_side_alone_reaches_is_protected_by_that_side(
    curvature: str, tmp_path: Path, tensors_of: Read
) -> None:
    animal = zoo.ALL["llava"]
    base, target = zoo.settle(animal, tmp_path)
    generator = torch.Generator().manual_seed(9)
    rows = [animal.rows(row, generator) for row in range(6)]
    (tmp_path / "images.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps(zoo.tokens(row, generator)) for row in range(6)))
    model = getattr(transformers, animal.model).from_pretrained(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "sft")
    made = {"base": base, "tuned": tmp_path / "sft", "target": target}
    images, text = f"{tmp_path / 'images.jsonl'}:3", str(tmp_path / "text.jsonl")
    protection = sculpt.Protection(curvature=curvature)
    fused(made, tmp_path / "images", images, protection=protection)
    fused(made, tmp_path / "both", [images, text], protection=protection)
    one, both = (tensors_of(tmp_path / name) for name in ("images", "both"))
    connector = [name for name in one if "multi_modal_projector" in name and name.endswith("weight")]
    assert connector
    for name in connector:
        np.testing.assert_allclose(both[name], one[name], atol=1e-6)
    inner = next(name for name in one if "language_model" in name and name.endswith("down_proj.weight"))
    assert not np.allclose(both[inner], one[inner], atol=1e-5)


def test_means_add_up_whatever_the_number_of_tokens() -> None:
    generator = np.random.default_rng(0)

    def side(tokens: int, *, gram: bool = True) -> Curvature:
        inputs = generator.normal(size=(tokens, 4))
        summed = (inputs.T @ inputs).astype(np.float32)
        return Curvature(terms=(np.square(inputs).sum(0)[None],), num_tokens=tokens, gram=summed if gram else None)

    one, two = side(5), side(70)
    grams: dict[Any, np.ndarray] = {}
    added = weighted_sum([(2.0, one), (0.5, two)], grams)
    assert added.gram is not None
    assert one.gram is not None
    assert two.gram is not None
    np.testing.assert_allclose(added.gram / added.num_tokens, 2 * one.gram / 5 + 0.5 * two.gram / 70, rtol=1e-6)
    np.testing.assert_allclose(added.terms[0][0] / added.num_tokens, np.diag(added.gram) / added.num_tokens, rtol=1e-6)
    assert weighted_sum([(2.0, one), (0.5, two)], grams).gram is added.gram
    assert weighted_sum([(1.0, one)], grams) is one
    never = Curvature(terms=(), num_tokens=0)
    of_one = weighted_sum([(2.0, one), (0.5, never)], grams)
    assert of_one.gram is not None
    np.testing.assert_allclose(of_one.gram / of_one.num_tokens, 2 * one.gram / 5, rtol=1e-6)
    assert weighted_sum([(2.0, one), (0.5, side(3, gram=False))], grams).gram is None
    with pytest.raises(CurvatureError, match=r"shapes \[4, 4\] and \[1, 4, 4\]"):
        weighted_sum([(1.0, one), (1.0, Curvature(terms=(), num_tokens=2, gram=one.gram[None]))], grams)


def test_a_weight_stands_after_the_last_colon_and_paths_keep_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:3").write_text("")
    read = {
        "text.jsonl": ("text.jsonl", 1.0),
        "text.jsonl:3": ("text.jsonl", 3.0),
        "default:.5": ("default", 0.5),
        "a:b/c.txt": ("a:b/c.txt", 1.0),
        "a:b/c.txt:1e-2": ("a:b/c.txt", 0.01),
        "a:3": ("a:3", 1.0),
        "a:3:2": ("a:3", 2.0),
        r"C:\data\rows.jsonl": (r"C:\data\rows.jsonl", 1.0),
    }
    for given, (source, weight) in read.items():
        side = GeneralSide.of(given)
        assert (side.source, side.weight) == (source, weight), given
    assert GeneralSide.of(Path("text.jsonl:3")).source == Path("text.jsonl:3")
    for weight in ("0", "-2", "1e999"):
        with pytest.raises(DataError, match=r"weight of `text\.jsonl` must be above 0"):
            GeneralSide.of(f"text.jsonl:{weight}")


def test_kinds_without_the_general_set_and_general_data_for_the_target_are_refused(
    found: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(MethodError, match="`protect_kinds` is an option of the general set"):
        Calibration(protect=found["one"], protect_kinds=("csv",))
    with pytest.raises(MethodError, match="both be measured on the general set that ships"):
        fused(found, tmp_path / "out", [found["one"], "default:2"], data="general")
    with pytest.raises(MethodError, match="both be measured on"):
        fused(found, tmp_path / "out", [found["one"], found["target"]])
    assert not (tmp_path / "out").exists()


def test_a_wider_scope_wants_one_side_of_statistics(found: dict[str, Path], tmp_path: Path) -> None:
    known = [found["one measured"], found["two measured"]]
    with pytest.raises(MethodError, match="held in memory"):
        fused(found, tmp_path / "out", known, method=sculpt.AdaDare(scope="model"))


@pytest.fixture
def reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a base that reads bytes, its fine-tune, and text for both sides; be in it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCULPT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: k for k, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, vocab_size=256, max_position_embeddings=64)  # pyright: ignore[reportCallIssue, reportArgumentType]
    model = transformers.LlamaForCausalLM(config)
    for name in ("base", "sft"):
        model.save_pretrained(folder / name)
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape))
    for name in ("train", "own"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": f"some text of {name}"}))
    return folder


def run(*options: str) -> Result:
    app = typer.Typer()
    for family in (calibrate, fuse, merge, rerun):
        family.register(app)
    return CliRunner().invoke(app, [*options])


def test_the_command_a_recipe_and_python_protect_alike(reading: Path) -> None:
    options = ["fuse", "base", "sft", "--data", "train.jsonl", "--protect", "own.jsonl:0.5", "--protect", "default:2"]
    kinds = ["--protect-kinds", "csv,novels", "--protect-kinds", "logs", "--protect-samples", "6"]
    done = run(*options, *kinds, "-o", "by-command", "--json")
    assert done.exit_code == 0, done.exception
    expected = "own.jsonl (weight 0.5) and the general set that ships (weight 2)"
    assert f"protecting the base on {expected}" in done.stderr
    own, ours = json.loads(done.stdout)["curvature"]["general"]
    assert (own["weight"], own["data"], own["num_tokens"]) == (0.5, "own.jsonl", 16)
    assert (ours["weight"], ours["data"]) == (2.0, "general")
    assert ours["kinds"] == [["csv", 128], ["logs", 128], ["novels", 128]]
    (reading / "recipe.yaml").write_text(
        "method: adadare\nbase: base\nmodels: [sft]\n"
        "calibration: {data: train.jsonl, protect: ['own.jsonl:0.5', 'default:2'], "
        "protect_kinds: [csv, novels, logs], protect_samples: 6}\n"
    )
    merged = run("merge", "recipe.yaml", "-o", "by-recipe")
    assert merged.exit_code == 0, merged.exception
    protect = [GeneralSide(source=reading / "own.jsonl", weight=0.5), "default:2"]
    calibration = Calibration(
        data=reading / "train.jsonl", protect=protect, protect_kinds=("csv", "novels", "logs"), protect_samples=6
    )
    sculpt.fuse(
        reading / "base", reading / "sft", output=reading / "by-python", calibration=calibration, method=PLAIN,
        settings=sculpt.Settings(protection=sculpt.Protection()),
    )  # fmt: skip
    made = [(reading / name / "model.safetensors").read_bytes() for name in ("by-command", "by-recipe", "by-python")]
    assert made[0] == made[1] == made[2]


def test_the_general_set_is_measured_once_for_many_fine_tunes(reading: Path) -> None:
    measured = run(
        "calibrate", "base", "--data", "general", "--kinds", "csv,logs", "--full", "*", "--samples", "6",
        "-o", "general.safetensors", "--json",
    )  # fmt: skip
    assert measured.exit_code == 0, measured.exception
    assert json.loads(measured.stdout)["provenance"]["kinds"] == [["csv", 192], ["logs", 192]]
    options = ["fuse", "base", "sft", "--data", "train.jsonl"]
    known = run(*options, "--protect", "general.safetensors", "-o", "known")
    assert known.exit_code == 0, known.exception
    kinds = ["--protect-kinds", "csv,logs", "--protect-samples", "6"]
    assert run(*options, "--protect", "default", *kinds, "-o", "anew").exit_code == 0
    first, second = ((reading / name / "model.safetensors").read_bytes() for name in ("known", "anew"))
    assert first == second


def test_a_kind_of_the_general_set_is_a_side_by_its_name(reading: Path) -> None:
    measured = run(
        "calibrate", "base", "--data", "general", "--kinds", "csv", "--full", "*", "--samples", "1",
        "-o", "csv.safetensors",
    )  # fmt: skip
    assert measured.exit_code == 0, measured.exception
    options = ["fuse", "base", "sft", "--data", "train.jsonl", "--protect", "own.jsonl", "--protect-samples", "8"]
    made = {}
    for side in ("csv.safetensors:2", "default/csv:2"):
        done = run(*options, "--protect", side, "-o", "out", "--overwrite", "--json")
        assert done.exit_code == 0, done.exception
        assert [one["weight"] for one in json.loads(done.stdout)["curvature"]["general"]] == [1.0, 2.0]
        made[side] = (reading / "out/model.safetensors").read_bytes()
    assert "protecting the base on own.jsonl and `csv` of the general set (weight 2)" in done.stderr
    assert made["csv.safetensors:2"] == made["default/csv:2"]
    without = run("fuse", "base", "sft", "--protect", "default/csv", "--protect-samples", "8", "-o", "without")
    assert without.exit_code == 0, without.exception
    assert "no sample of either side" not in without.stderr  # embeddings are interpolated by design
    (reading / "default").mkdir()
    (reading / "default/csv").write_text((reading / "own.jsonl").read_text())  # what is there is meant
    assert GeneralSide.of("default/csv:2").kind is None


def test_an_unknown_kind_is_refused_with_the_list(reading: Path) -> None:
    for command in (
        ["fuse", "base", "sft", "--data", "train.jsonl", "--protect", "default/poems"],
        ["fuse", "base", "sft", "--data", "train.jsonl", "--protect", "default", "--protect-kinds", "csv,poems"],
        ["calibrate", "base", "--data", "general", "--kinds", "poems"],
    ):
        refused = run(*command, "-o", "out").exception
        assert isinstance(refused, DataError)
        assert "no kind `poems`" in refused.message
        assert "answers, arithmetic," in (refused.hint or "")
        assert not (reading / "out").exists()
    for command, option in (
        (["fuse", "base", "sft", "--protect", "own.jsonl", "--protect-kinds", "csv"], "protect_kinds"),
        (["calibrate", "base", "--kinds", "csv"], "kinds"),
        (["fuse", "base", "sft", "--protect", "own.jsonl:0", "--data", "train.jsonl"], "protect"),
    ):
        idle = run(*command, "-o", "out").exception
        assert isinstance(idle, SculptError)
        assert idle.options == (option,)
    without = run("fuse", "base", "sft", "--protect-kinds", "csv").exception
    assert "`--protect-kinds` has no effect without `--protect`" in str(without)


def test_the_same_samples_on_both_sides_are_refused_by_whatever_name(reading: Path) -> None:
    (reading / "copy.jsonl").write_text((reading / "own.jsonl").read_text())
    (reading / "link.jsonl").symlink_to("own.jsonl")
    for name, model in (("g", "base"), ("a", "sft")):
        done = run("calibrate", model, "--data", "own.jsonl", "--full", "*", "-o", f"{name}.safetensors")
        assert done.exit_code == 0, done.exception
    for given in (
        ["--data", "own.jsonl", "--protect", f"{reading}/own.jsonl"],
        ["--data", "copy.jsonl", "--protect", "own.jsonl"],
        ["--data", "link.jsonl", "--protect", "train.jsonl", "--protect", "own.jsonl:2"],
        ["--data", "own.jsonl", "--protect", "g.safetensors"],
        ["--hessian", "a.safetensors", "--protect", "own.jsonl"],
        ["--hessian", "a.safetensors", "--protect", "g.safetensors"],
        ["--hessian", "g.safetensors", "--hessian-of-other-model", "--protect", "g.safetensors"],
    ):
        refused = run("fuse", "base", "sft", *given, "-o", "out").exception
        assert isinstance(refused, MethodError), given
        assert "nothing would be protected" in refused.message
        assert not (reading / "out").exists()


def test_python_heeds_how_the_base_is_protected_wherever_that_is_said(reading: Path) -> None:
    how = sculpt.Protection(weight=3.0, curvature="diagonal")
    settings, calibration = sculpt.Settings(protection=how), Calibration(data="train.jsonl", protect="own.jsonl")
    for k, given in enumerate(
        (
            {"data": "train.jsonl", "protect": "own.jsonl", "protection": how},
            {"data": "train.jsonl", "protect": "own.jsonl", "settings": settings},
            {"calibration": calibration, "settings": settings, "method": "two-sided"},
            {"calibration": calibration, "protection": how},
        )
    ):
        made = sculpt.fuse("base", "sft", output=f"made-{k}", **given)  # pyright: ignore[reportArgumentType]
        assert made.settings["protection"]["weight"] == 3.0
        assert (reading / f"made-{k}/model.safetensors").read_bytes() == (
            reading / "made-0/model.safetensors"
        ).read_bytes()
    assert sculpt.fuse("base", "sft", output="by-calibration", calibration=calibration).settings["protection"]
    with pytest.raises(MethodError, match="not both"):
        sculpt.fuse("base", "sft", output="out", protect="own.jsonl", protection=how, settings=settings)


@pytest.mark.parametrize(
    "given",
    [
        {"protect": "default/csv", "protect_samples": 8},
        {"protect": ["default", "default/csv:3", "own.jsonl:0.123456789"], "protect_kinds": ("csv", "logs")},
        {"protect": "default", "protect_kinds": ("novels",), "max_length": 20, "seed": 3},
        {"data": ["train.jsonl", "delta"], "samples": 9, "protect": "own.jsonl", "protect_samples": 5, "batch_size": 1},
        {"hessian": ["sft.safetensors", "delta"], "protect": "base.safetensors:2"},
    ],
    ids=str,
)
def test_the_recipe_of_a_protected_fuse_makes_its_weights(reading: Path, given: dict[str, Any]) -> None:
    for name, data in (("base", "own"), ("sft", "train")):
        run("calibrate", name, "--data", f"{data}.jsonl", "--full", "*", "-o", f"{name}.safetensors")
    calibration = Calibration(protect_check=False, **given)
    tuned = ["sft", "other"] if isinstance(given.get("data") or given.get("hessian"), list) else ["sft"]
    shutil.copytree("sft", "other")
    settings = sculpt.Settings(seed=calibration.seed)
    made = sculpt.fuse("base", tuned, output="made", calibration=calibration, settings=settings, method="two-sided")
    (reading / "recipe.yaml").write_text(recipe_text(made))
    merged = run("merge", "recipe.yaml", "-o", "merged")
    assert merged.exit_code == 0, merged.exception
    again = run("rerun", "made", "-o", "again")
    assert again.exit_code == 0, again.exception
    first = (reading / "made/model.safetensors").read_bytes()
    assert first == (reading / "merged/model.safetensors").read_bytes()


def test_samples_by_another_seed_than_the_masks_have_no_recipe(reading: Path) -> None:
    sculpt.fuse("base", "sft", output="made", calibration=Calibration(seed=4, protect="own.jsonl", protect_check=False))
    refused = run("rerun", "made", "-o", "again").exception
    assert isinstance(refused, MethodError)
    assert "another seed" in refused.message


def test_a_folder_with_the_name_of_the_set_is_no_matter_where_nobody_names_it(reading: Path) -> None:
    (reading / "general").mkdir()
    for words in (["--protect", "default/csv", "--protect-samples", "8"], ["--protect", "default", "--dry-run"]):
        done = run("fuse", "base", "sft", *words, "--no-protect-check", "-o", "out")
        assert done.exit_code == 0, done.exception
    for words in (["fuse", "base", "sft", "--protect", "general"], ["calibrate", "base", "--data", "general"]):
        refused = run(*words, "-o", "none").exception
        assert isinstance(refused, DataError)
        assert "a folder too" in refused.message


def test_the_name_of_the_set_as_data_protects_as_its_own_does(reading: Path) -> None:
    for name in ("general", "default"):
        done = run(
            "fuse", "base", "sft", "--protect", name, "--protect-kinds", "csv", "--no-protect-check", "-o", f"by-{name}"
        )
        assert done.exit_code == 0, done.exception
    first, second = ((reading / f"by-{name}/model.safetensors").read_bytes() for name in ("general", "default"))
    assert first == second


def test_names_of_sides_that_are_mistyped_come_with_a_hint(reading: Path) -> None:
    for side, hint in (
        ("csv", "`default/csv` is a kind of the general set"),
        ("chats", "`default/chats` is a kind of the general set"),
        ("own.jsonl:three", "the weight of `own.jsonl` is a number above 0, got `three`"),
        ("own.jsonl,default", "give the option once for each"),
        ("defualt", "did you mean `default`?"),
        ("", "`default` is the general set that ships"),
    ):
        refused = run("fuse", "base", "sft", "--protect", side, "-o", "out").exception
        assert isinstance(refused, DataError), side
        assert refused.hint == hint
