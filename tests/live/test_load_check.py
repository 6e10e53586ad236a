"""An output that transformers would not load whole is refused before it is written."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import sculpt
from sculpt.api import check_output, prepare_fuse
from sculpt.fusion.checkpoint import Checkpoint
from sculpt.fusion.errors import ModelError
from sculpt.fusion.methods import TaskArithmetic
from sculpt.fusion.recipe.prepare import prepare_recipe
from sculpt.fusion.recipe.read import read_recipe
from sculpt.fusion.run.outcome import is_as_an_input
from sculpt.fusion.run.prepared import Prepared
from sculpt.fusion.run.settings import Settings
from sculpt.live.load_check import check_loads

from ..reports.tiny import model, pair, rewrite, saved

METHOD = TaskArithmetic(scale=0.5)


def prefixed(folder: Path, prefix: str) -> None:
    rewrite(folder, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})


def stacked(folder: Path, source: Path, *ranges: tuple[int, int]) -> Prepared:
    slices = "\n".join(f"- sources: [{{model: {source}, layer_range: [{a}, {b}]}}]" for a, b in ranges)
    (folder / "recipe.yml").write_text(f"merge_method: passthrough\nslices:\n{slices}\n")
    return prepare_recipe(read_recipe(str(folder / "recipe.yml")), output=folder / "out", near=folder)


def test_what_is_laid_out_as_an_input_costs_nothing(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    script = (
        "import sys; from sculpt.api import check_output, prepare_fuse\n"
        f"prepared = prepare_fuse({str(base)!r}, {str(tuned)!r}, output={str(tmp_path / 'out')!r})\n"
        "assert check_output(prepared) is None; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_it_is_looked_at_where_somebody_asks(tmp_path: Path) -> None:
    report = check_output(prepare_fuse(*pair(tmp_path), output=tmp_path / "out"), always=True)
    assert report is not None
    assert report.class_name == "LlamaForCausalLM"
    assert report.told == "loads: `LlamaForCausalLM` is filled by all 30 tensors"


def test_names_that_the_class_has_not_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    prefixed(tuned, "wrapped.")
    with pytest.raises(ModelError, match=r"^no tensor makes `lm_head.weight`, .* and 59 more such disagreements$"):
        sculpt.fuse(base, tuned, output=tmp_path / "out", method=METHOD, calibration=False)
    assert not (tmp_path / "out").exists()
    sculpt.fuse(
        base, tuned, output=tmp_path / "out", method=METHOD, calibration=False, settings=Settings(load_check=False)
    )
    assert (tmp_path / "out").exists()


def test_what_no_input_has_either_is_told_and_not_held_against_the_output(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    for folder in (base, tuned):
        rewrite(folder, lambda tensors: {k: v for k, v in tensors.items() if "layers.1.mlp.up_proj" not in k})
    report = check_output(prepare_fuse(base, tuned, output=tmp_path / "out"), always=True)
    assert report is not None
    assert "is filled as far as by the inputs: no tensor makes `model.layers.1.mlp.up_proj.weight`" in report.told


def with_layers(prepared: Prepared, number: int) -> Prepared:
    """Return an output whose configuration says of its layers no more than the number."""
    config = {**(prepared.plan.base.config or {}), "num_hidden_layers": number}
    return replace(prepared, configuration=replace(prepared.configuration, files={"config.json": config}))


@pytest.mark.parametrize(
    ("kind", "options", "left_out", "what"),
    [
        ("Gemma2", {"num_hidden_layers": 4, "head_dim": 8}, {"layer_types": None}, "sliding_attention"),
        (
            "SmolLM3",
            {"num_hidden_layers": 4, "no_rope_layer_interval": 2},
            {"no_rope_layers": None, "layer_types": None, "no_rope_layer_interval": 2},
            "use_rope",
        ),
    ],
)
def test_a_layer_that_would_be_of_another_kind_in_its_new_place_is_refused(
    kind: str, options: dict[str, object], left_out: dict[str, object], what: str, tmp_path: Path
) -> None:
    source = saved(model(kind, **options), tmp_path / "source", **left_out)
    check_output(with_layers(stacked(tmp_path, source, (0, 2), (2, 4), (2, 4)), 6))  # moved by a whole pattern
    with pytest.raises(ModelError, match=r"^`model.layers.3` would have .*`model.layers.2` of ") as refused:
        check_output(with_layers(stacked(tmp_path, source, (0, 3), (2, 4)), 5))
    assert what in refused.value.message


def test_a_layer_of_experts_is_no_dense_layer(tmp_path: Path) -> None:
    options = {"moe_intermediate_size": 8, "num_experts": 2, "num_experts_per_tok": 1, "mlp_only_layers": [1]}
    source = saved(model("Qwen3Moe", **options), tmp_path / "source")
    with pytest.raises(ModelError, match=r"`model.layers.2` would have .* `Qwen3MoeSparseMoeBlock`"):
        check_output(with_layers(stacked(tmp_path, source, (0, 2), (1, 3)), 4))


def test_a_configuration_that_no_class_belongs_to_is_not_checked(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    for folder in (base, tuned):
        (folder / "config.json").write_text('{"model_type": "of my own"}')
    report = check_output(prepare_fuse(base, tuned, output=tmp_path / "out"), always=True)
    assert report is not None
    assert report.class_name is None
    assert report.told.startswith("not checked that it loads: transformers cannot read `config.json`")


def test_any_folder_can_be_asked(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    assert is_as_an_input(prepare_fuse(base, tuned, output=tmp_path / "out"))
    opened = Checkpoint(base)
    assert check_loads(opened.tensors, opened.config).class_name == "LlamaForCausalLM"
    rewrite(base, lambda tensors: {**tensors, "lm_head.weight": tensors["lm_head.weight"][:40]})
    opened = Checkpoint(base)
    with pytest.raises(ModelError, match=r"`lm_head.weight` gives \[40, 16\], and .* is \[48, 16\] by `config.json`"):
        check_loads(opened.tensors, opened.config)
