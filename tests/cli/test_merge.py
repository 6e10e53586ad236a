"""`sculpt merge` and `--config`, as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sculpt.fusion.errors import MethodError

from ..commands import invoke

Pair = Callable[..., tuple[Path, Path]]
Read = Callable[[Path], dict[str, np.ndarray]]
Same = Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], bool]


def manifest(folder: Path) -> dict:
    return json.loads((folder / "sculpt-manifest.json").read_text())


def test_merge_runs_a_recipe(make_pair: Pair, tmp_path: Path, tensors_of: Read, same_bits: Same) -> None:
    base, tuned = make_pair()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"method: dare\nbase: {base}\nmodels: [{tuned}]\noptions: {{sparsity: 0.5}}\nseed: 4\n")
    assert invoke("merge", recipe, "-o", tmp_path / "one").exit_code == 0
    assert invoke("dare", base, tuned, "--sparsity", "0.5", "--seed", "4", "-o", tmp_path / "two").exit_code == 0
    assert same_bits(tensors_of(tmp_path / "one"), tensors_of(tmp_path / "two"))
    assert manifest(tmp_path / "one")["method"] == "dare"


def test_flags_of_merge_win_over_the_recipe(make_pair: Pair, tmp_path: Path, tensors_of: Read, same_bits: Same) -> None:
    base, tuned = make_pair()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"method: dare\nbase: {base}\nmodels: [{tuned}]\noptions: {{sparsity: 0.5}}\nseed: 4\nexclude: ['*norm*']\n"
    )
    run_flags = ["--seed", "7", "--device", "cpu", "--threads", "1"]
    flags = [*run_flags, "--exclude", "*mlp*", "--on-extra", "drop", "--dtype", "bfloat16"]
    assert invoke("merge", recipe, "-o", tmp_path / "one", *flags).exit_code == 0
    assert invoke("dare", base, tuned, "--sparsity", "0.5", "-o", tmp_path / "two", *flags).exit_code == 0
    assert same_bits(tensors_of(tmp_path / "one"), tensors_of(tmp_path / "two"))
    assert manifest(tmp_path / "one")["settings"]["policies"]["on_extra"] == "drop"


def test_print_plan_writes_nothing(make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    result = invoke("merge", "dare", "--base", base, "--tuned", tuned, "-o", tmp_path / "out", "--print-plan", "--json")
    assert result.exit_code == 0
    assert {entry["action"] for entry in json.loads(result.stdout)["tensors"]} == {"fuse"}
    assert not (tmp_path / "out").exists()


def test_a_recipe_without_models_asks_for_them(tmp_path: Path) -> None:
    result = invoke("merge", "dare", "-o", tmp_path / "out")
    assert isinstance(result.exception, MethodError)
    assert [way.option for way in result.exception.ways] == ["base", "tuned"]


def test_flags_override_a_config_and_what_they_leave_is_its(make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    invoke("fuse", base, tuned, "--config", "adadare-lora", "--no-calibration", "-o", tmp_path / "one")
    invoke(
        "fuse", base, tuned, "--config", "adadare-lora", "--no-calibration", "--gamma", "0.4", "-o", tmp_path / "two"
    )
    one, two = manifest(tmp_path / "one"), manifest(tmp_path / "two")
    assert (one["options"]["gamma"], two["options"]["gamma"]) == (0.7, 0.4)
    assert one["options"]["sparsity"] == two["options"]["sparsity"] == 0.9


def test_a_config_gives_the_bits_of_the_flags_it_stands_for(
    make_pair: Pair, tmp_path: Path, tensors_of: Read, same_bits: Same
) -> None:
    base, tuned = make_pair()
    config = tmp_path / "mine.yaml"
    config.write_text("method: adadare\noptions: {gamma: 0.8, sparsity: 0.6}\nexclude: ['*norm*']\nrest: tuned\n")
    invoke("fuse", base, tuned, "--config", config, "--no-calibration", "-o", tmp_path / "one")
    flags = ["--gamma", "0.8", "--sparsity", "0.6", "--exclude", "*norm*", "--rest", "tuned"]
    invoke("fuse", base, tuned, *flags, "--no-calibration", "-o", tmp_path / "two")
    assert same_bits(tensors_of(tmp_path / "one"), tensors_of(tmp_path / "two"))


def test_fuse_takes_a_config_of_another_method_but_not_its_own_flags_for_it(make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    assert invoke("fuse", base, tuned, "--config", "dare", "-o", tmp_path / "one").exit_code == 0
    assert manifest(tmp_path / "one")["method"] == "dare"
    result = invoke("fuse", base, tuned, "--config", "dare", "--gamma", "0.4", "-o", tmp_path / "two")
    assert isinstance(result.exception, MethodError)
    assert "`--gamma` is not an option of DARE" in str(result.exception)


def test_another_methods_command_refuses_the_config(make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    result = invoke("task-arithmetic", base, tuned, "--config", "dare", "-o", tmp_path / "out")
    assert isinstance(result.exception, MethodError)
    assert "is a recipe for dare" in str(result.exception)


def test_weights_are_a_list_and_a_wrong_one_is_a_usage_error(make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    result = invoke("task-arithmetic", base, tuned, tuned, "--weights", "0.5,0.25", "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert manifest(tmp_path / "out")["options"]["weights"] == [0.5, 0.25]
    result = invoke("task-arithmetic", base, tuned, tuned, "--weights", "0.5;0.25", "-o", tmp_path / "other")
    assert result.exit_code == 2
    result = invoke("task-arithmetic", base, tuned, tuned, "--weights", "1,2,3", "-o", tmp_path / "other")
    assert isinstance(result.exception, MethodError)


@pytest.mark.parametrize("method", ["dare-ties", "linear", "saliency", "tailor", "sce", "model-stock", "karcher"])
def test_every_method_has_a_command_with_its_source(method: str) -> None:
    result = invoke(method, "--help")
    assert result.exit_code == 0
    assert "Source" in result.stdout
