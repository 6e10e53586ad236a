"""Meta's and Mistral's own layouts: parts put together, and files under the names that they had."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sculpt
import torch
from safetensors.torch import load_file, save_file
from sculpt.fusion.checkpoint import open_checkpoint
from sculpt.fusion.errors import CheckpointError

# As `convert_llama_weights_to_hf.py` of transformers puts them together.
AXES = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w3": 0, "w2": 1, "output": 0}


def model(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"tok_embeddings.weight": (12, 8), "norm.weight": (8,), "output.weight": (12, 8), "rope.freqs": (2,)}
    shapes |= {f"layers.0.attention.{name}.weight": (8, 8) for name in ("wq", "wk", "wv", "wo")}
    shapes |= {f"layers.0.feed_forward.{name}.weight": (20, 8) for name in ("w1", "w3")}
    shapes |= {"layers.0.feed_forward.w2.weight": (8, 20), "layers.0.ffn_norm.weight": (8,)}
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


def save_parts(folder: Path, tensors: dict[str, torch.Tensor], count: int, embeddings: int = 1) -> Path:
    """Write what each of some processes saves."""
    folder.mkdir(parents=True)
    (folder / "params.json").write_text('{"dim": 8}')
    (folder / "tokenizer.model").write_bytes(b"tokens")
    for rank in range(count):
        own = {}
        for name, tensor in tensors.items():
            axis = embeddings if name.startswith("tok_") else AXES.get(name.split(".")[-2])
            own[name] = tensor if axis is None else tensor.chunk(count, axis)[rank].clone()
        torch.save(own, folder / f"consolidated.{rank:02d}.pth")
    return folder


@pytest.mark.parametrize(("count", "embeddings"), [(1, 1), (2, 1), (2, 0), (4, 0)])
def test_parts_are_put_together(count: int, embeddings: int, tmp_path: Path) -> None:
    tensors = model(0)
    found = open_checkpoint(save_parts(tmp_path / "meta", tensors, count, embeddings))
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].shape == tensor.shape
        assert found.read(name).tobytes() == tensor.view(torch.uint8).numpy().tobytes()


def test_parts_fuse_as_one_file_does_and_keep_what_lies_beside(tmp_path: Path) -> None:
    paths = [save_parts(tmp_path / f"m{k}", model(k), count) for k, count in enumerate((2, 4))]
    for k in range(2):
        (tmp_path / f"one{k}").mkdir()
        save_file(model(k), tmp_path / f"one{k}/consolidated.safetensors")
    method = sculpt.Dare(sparsity=0.5)
    sculpt.fuse(*paths, output=tmp_path / "out", method=method)
    sculpt.fuse(tmp_path / "one0", tmp_path / "one1", output=tmp_path / "plain", method=method)
    found, plain = (load_file(tmp_path / name / "consolidated.safetensors") for name in ("out", "plain"))
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        *("consolidated.safetensors", "params.json", "tokenizer.model", "README.md", "sculpt-manifest.json")
    }
    sculpt.verify(tmp_path / "out", paths)


def test_shards_of_mistral_keep_their_names(tmp_path: Path) -> None:
    for k in range(2):
        folder, tensors = tmp_path / f"m{k}", model(k)
        folder.mkdir()
        place = {}
        for number in (1, 2):
            file = f"consolidated-{number:05d}-of-00002.safetensors"
            own = {name: tensors[name] for name in list(tensors)[number - 1 :: 2]}
            save_file(own, folder / file)
            place |= dict.fromkeys(own, file)
        (folder / "consolidated.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    sculpt.fuse(tmp_path / "m0", tmp_path / "m1", output=tmp_path / "out", method=sculpt.Dare())
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names >= {file.name for file in (tmp_path / "m0").iterdir()}


def edit(number: int, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / f"consolidated.{number:02d}.pth"
        content = torch.load(file)
        change(content)
        torch.save(content, file)

    return apply


def cut(folder: Path) -> None:
    file = folder / "consolidated.01.pth"
    file.write_bytes(file.read_bytes()[:-100])


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda f: (f / "consolidated.00.pth").unlink(), "has no `consolidated.00.pth`"),
    "the last is missing": (lambda f: (f / "consolidated.01.pth").unlink(), "holds 1 of its parts and lacks others"),
    "cut off": (cut, "cannot read `{}/consolidated.01.pth`"),
    "empty": (lambda f: (f / "consolidated.01.pth").write_bytes(b""), "consolidated.01.pth` is no file of torch's"),
    "of others": (edit(1, lambda c: c.pop("norm.weight")), "are of two models: `norm.weight`"),
    "unknown": (
        lambda f: [edit(k, lambda c: c.update({"x.gate": torch.ones(2)}))(f) for k in range(2)],
        "`x.gate` in `{}` is split among 2 files, and how is not known",
    ),
    "uneven": (
        edit(1, lambda c: c.update({"output.weight": torch.ones(6, 7).bfloat16()})),
        "the parts of `output.weight` in `{}` do not fit: [6, 8] and [6, 7]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_parts_that_do_not_fit_are_refused(case: str, tmp_path: Path) -> None:
    damage, told = BAD[case]
    folder = save_parts(tmp_path / "meta", model(0), 2)
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert told.format(folder) in caught.value.message
    assert "\n" not in caught.value.message
