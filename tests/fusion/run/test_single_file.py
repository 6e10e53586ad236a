"""One file of weights in, one file out: as kohya's scripts, ComfyUI and others keep models."""

from __future__ import annotations

from pathlib import Path

import pytest
import sculpt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sculpt.fusion.checkpoint.output.guard import record_beside
from sculpt.fusion.errors import SculptError

NAMES = ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.bias")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(8, 3, generator=generator).half() for name in NAMES}
    base["position_ids"] = torch.arange(4)
    tuned = {k: (t + 0.01).to(t.dtype) if t.is_floating_point() else t for k, t in base.items()}
    save_file(base, tmp_path / "base.safetensors", {"format": "pt"})
    save_file(tuned, tmp_path / "tuned.safetensors", {"modelspec.title": "mine", "modelspec.hash_sha256": "0x0"})
    return tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"


def test_files_make_a_file_that_says_what_the_fine_tune_says(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    output = tmp_path / "out.safetensors"
    manifest = sculpt.fuse(base, tuned, output=output, method=sculpt.Dare())
    sculpt.fuse(base, tuned, output=tmp_path / "folder", method=sculpt.Dare())
    with safe_open(output, "pt") as found, safe_open(tmp_path / "folder/model.safetensors", "pt") as plain:
        # A digest of the fine-tune's weights would be a lie about these.
        assert found.metadata() == plain.metadata() == {"format": "pt", "modelspec.title": "mine"}
        assert set(found.keys()) == {*NAMES, "position_ids"}
        assert all(torch.equal(found.get_tensor(name), plain.get_tensor(name)) for name in found.keys())  # noqa: SIM118
    assert manifest.tensors == sculpt.Manifest.read(output).tensors
    assert [record.name for record in manifest.outputs] == ["out.safetensors"]
    assert sculpt.verify(output, [base, tuned]).num_files == 3
    assert {file.name for file in tmp_path.iterdir()} == {
        *("base.safetensors", "tuned.safetensors", "out.safetensors", "out.sculpt-manifest.json", "folder")
    }


def test_the_default_output_of_files_is_a_file_beside_the_fine_tune(pair: tuple[Path, Path]) -> None:
    assert sculpt.fuse(*pair, method=sculpt.Dare()).folder == pair[1].with_name("tuned-dare.safetensors")


def test_only_a_file_that_sculpt_wrote_is_replaced(pair: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    output.write_bytes(pair[0].read_bytes())
    for overwrite, told in ((False, "exists"), (True, "not a checkpoint that sculpt wrote")):
        with pytest.raises(SculptError, match=told):
            sculpt.fuse(*pair, output=output, method=sculpt.Dare(), overwrite=overwrite)
    assert output.read_bytes() == pair[0].read_bytes()
    output.unlink()
    first = sculpt.fuse(*pair, output=output, method=sculpt.Dare())
    again = sculpt.fuse(*pair, output=output, method=sculpt.Dare(sparsity=0.5), overwrite=True)
    assert first.outputs != again.outputs == sculpt.Manifest.read(output).outputs
    record_beside(output).unlink()
    with pytest.raises(SculptError, match=r"has no `out\.sculpt-manifest\.json` beside it"):
        sculpt.verify(output)


def test_a_changed_file_is_found_out(pair: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    sculpt.fuse(*pair, output=output, method=sculpt.Dare())
    content = bytearray(output.read_bytes())
    content[-1] ^= 1
    output.write_bytes(content)
    with pytest.raises(SculptError, match="the manifest says"):
        sculpt.verify(output)


def test_a_failed_run_leaves_no_file(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    bad = {name: torch.full((8, 3), torch.nan).half() for name in NAMES} | {"position_ids": torch.arange(4)}
    save_file(bad, tuned)
    with pytest.raises(SculptError, match="NaN"):
        sculpt.fuse(base, tuned, output=tmp_path / "out.safetensors", method=sculpt.Dare())
    assert {file.name for file in tmp_path.iterdir()} == {"base.safetensors", "tuned.safetensors"}
