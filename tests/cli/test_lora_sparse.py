"""`lora-density` and `lora-prune` as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sculpt.fusion.errors import SculptError

from ..commands import invoke


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of two blocks, one factor in bfloat16, one module of two experts."""
    rng = np.random.default_rng(0)
    folder, tensors = tmp_path / "adapter", {}
    for block in range(2):
        for kind, (rows, columns, experts) in {"q_proj": (24, 30, 1), "experts": (20, 16, 2)}.items():
            a, b = rng.standard_normal((4 * experts, columns)), rng.standard_normal((rows, 4 * experts))
            a[rng.random(a.shape) < 0.7] = 0
            key = f"base_model.model.model.layers.{block}.{kind}"
            tensors[f"{key}.lora_A.weight"] = a.astype(np.float32)
            tensors[f"{key}.lora_B.weight"] = b.astype(ml_dtypes.bfloat16)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_density_counts_every_product_and_draws_it(adapter: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = invoke("lora-density", adapter, "--json", "--png", tmp_path / "x.png")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    tensors = load_file(adapter / "adapter_model.safetensors")
    for layer in printed["layers"]:
        a = tensors[f"base_model.model.{layer['name']}.lora_A.weight"]
        b = tensors[f"base_model.model.{layer['name']}.lora_B.weight"].astype(np.float32)
        experts = len(a) // 4
        # The expert is outer in A and inner in B.
        products = [b[:, k::experts] @ a[4 * k : 4 * (k + 1)] for k in range(experts)]
        assert layer["density"] == pytest.approx(np.mean([np.count_nonzero(p) / p.size for p in products]))
        assert layer["density_a"] == pytest.approx(np.count_nonzero(a) / a.size)
        assert layer["expected"] == pytest.approx(1 - (1 - layer["density_a"] * layer["density_b"]) ** 4)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    refused = invoke("lora-density", adapter, "--png", tmp_path / "x.png")
    assert str(refused.exception) == f"`{tmp_path / 'x.png'}` exists"
    assert invoke("lora-density", adapter, "--png", tmp_path / "x.png", "--overwrite").exit_code == 0
    refused = invoke("lora-density", adapter, "--png", adapter / "adapter_model.safetensors", "--overwrite")
    assert "lies inside the input" in str(refused.exception)
    shown = invoke("lora-density", adapter)
    words = " ".join(shown.stdout.split())
    assert "of 4 layers within the bound" in words


def test_density_needs_no_torch(adapter: Path) -> None:
    code = (
        "import sys\nfrom sculpt.fusion.lora.density import adapter_density\nfrom pathlib import Path\n"
        f"adapter_density(Path({str(adapter)!r}))\nassert not {{'torch', 'numba'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_prune_keeps_the_largest_of_each_factor(adapter: Path, tmp_path: Path) -> None:
    result = invoke("lora-prune", adapter, "-o", tmp_path / "thin", "--density", "0.1", "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "thin"))
    squares = [0.0, 0.0]
    for name, tensor in before.items():
        kept = after[name] != 0
        assert after[name].dtype == tensor.dtype
        assert int(kept.sum()) == int(0.1 * tensor.size)
        assert (after[name][kept] == tensor[kept]).all()
        magnitude = np.abs(tensor.astype(np.float32))
        assert magnitude[kept].min() >= magnitude[~kept].max()
        squares = [squares[0] + float((magnitude[kept] ** 2).sum()), squares[1] + float((magnitude**2).sum())]
    assert printed["kept_squares"] == pytest.approx(squares[0] / squares[1])
    assert printed["after"] < printed["before"]
    assert invoke("lora-prune", adapter, "-o", tmp_path / "thin").exception is not None
    again = invoke("lora-prune", adapter, "-o", tmp_path / "thin", "--overwrite", "--density", "1")
    assert "100.0% of" in " ".join(again.stderr.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--density", "0"], "leaves nothing"),
        (["--density", "10"], "between 0 and 1"),
        (["--density", "0.001"], "keeps none of"),
    ],
)
def test_prune_refuses(options: list[str], words: str, adapter: Path, tmp_path: Path) -> None:
    result = invoke("lora-prune", adapter, "-o", tmp_path / "thin", *options)
    assert isinstance(result.exception, SculptError)
    assert words in result.exception.message
    assert not (tmp_path / "thin").exists()


def test_what_is_no_lora_is_refused(tmp_path: Path) -> None:
    result = invoke("lora-density", tmp_path)
    assert isinstance(result.exception, SculptError)
    assert "is not an adapter" in result.exception.message
