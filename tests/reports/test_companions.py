"""Every file of base and tuned is accounted for: what is part of a model is kept, what is left of training is not."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import peft
import pytest
import sculpt
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sculpt.fusion.errors import SculptError
from sculpt.fusion.lora.pairs import LoneAdapter
from sculpt.fusion.methods import TaskArithmetic
from sculpt.fusion.record.manifest import Manifest
from sculpt.fusion.run.settings import Settings

from .tiny import loads, model, pair, saved, tensors_of

HALF = TaskArithmetic(scale=0.5)
# What people met, and what should have become of it. The text says which side it is of where it is copied.
PART_OF_THE_MODEL = [
    "spk_dict.pt",  # EchoInk#1, LLaMA-Factory#7821, #7537: OSError when the merged Qwen2.5-Omni is loaded
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",  # sentence-transformers#3776
    "3_Dense/pytorch_model.bin",
    "modules.json",
    "sparse_linear.pt",  # FlagEmbedding#839
    "colbert_linear.pt",
    "tokenizer.model",
    "LICENSE",
]
LEFT_BY_TRAINING = [
    "pytorch_model_fsdp_0/__0_0.distcp",
    "global_step10/mp_rank_00_model_states.pt",
    "checkpoint-50/model.safetensors",
    "checkpoint-50/trainer_state.json",
    "logs/events.json",
    "model_world_size_2_rank_0.pt",  # verl
    "extra_state_world_size_2_rank_0.pt",
    "sampler.bin",  # accelerate
    "dl_state_dict.bin",
    "custom_checkpoint_0.pkl",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "rng_state_1.pth",
    "training_args.bin",
    "trainer_state.json",
    "latest",
    "zero_to_fp32.py",
    "runs/Nov26/events.out.tfevents.1",
    "wandb/run-1/files/config.yaml",
]
OTHER_FORMS = ["onnx/model.onnx", "onnx/model.onnx_data", "model.gguf", "tf_model.h5", "flax.msgpack", "merges.zip"]
ADAPTERS = ["adapter_config.json", "adapter_model.safetensors"]
NEVER = [*LEFT_BY_TRAINING, *OTHER_FORMS, *ADAPTERS, "pytorch_model.bin", "pytorch_model_fsdp.bin", ".git/HEAD", ".env"]


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}" if name == "adapter_config.json" else json.dumps({"of": folder.name}))


def fuse(base: Path, tuned: Path, output: Path, **settings: object) -> Manifest:
    options = Settings(**settings)  # pyright: ignore[reportArgumentType]
    return sculpt.fuse(base, tuned, output=output, method=HALF, calibration=False, settings=options)


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_every_file_is_kept_or_left_and_the_manifest_says_which(side: str, tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    put(tmp_path / side, *PART_OF_THE_MODEL, *NEVER)
    manifest = fuse(base, tuned, tmp_path / "out", config_from=side)
    for name in PART_OF_THE_MODEL:
        assert json.loads((tmp_path / "out" / name).read_text()) == {"of": side}, name
    for name in NEVER:
        assert not (tmp_path / "out" / name).exists(), name
    told = {record.name: record for record in manifest.files if record.model == side}
    for name in (*PART_OF_THE_MODEL, *NEVER):
        places = [name, *(f"{parent.as_posix()}/" for parent in Path(name).parents)]
        [record] = [told[place] for place in places if place in told]
        assert record.action == ("copied" if name in PART_OF_THE_MODEL else "left out"), name
    said = [note for note in manifest.notes if "it may be part of the model" in note]
    weights = [name for name in PART_OF_THE_MODEL if Path(name).suffix in (".pt", ".safetensors", ".bin")]
    assert [any(f"`{name}` is copied" in note for note in said) for name in weights] == [True] * 5
    assert any("holds a whole model and an adapter: the whole model was read" in note for note in manifest.notes)
    loads(tmp_path / "out")  # transformers would look for an adapter whose configuration it finds (peft#1381)
    sculpt.verify(tmp_path / "out")


LENT = [
    "processor_config.json",  # 2U1/Llama3.2-Vision#5, LLaMA-Factory#5749, NeMo-Automodel#3256
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer_config.json",
    "spk_dict.pt",
]


def test_what_the_fine_tunes_folder_lacks_comes_from_the_base(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    for name in LENT:
        (base / name).write_text('{"of": "base"}')
    (base / "modeling_own.py").write_text("# of another model")
    manifest = fuse(base, tuned, tmp_path / "out")
    for name in LENT:
        assert (tmp_path / "out" / name).read_text() == '{"of": "base"}', name
    assert not (tmp_path / "out/modeling_own.py").exists()
    told = {(record.model, record.name): record for record in manifest.files}
    assert told["base", "modeling_own.py"].why == "the output's configuration is another model's"
    assert told["base", "config.json"].why == "another model has it too"
    assert told["tuned", "config.json"].action == "copied"


@pytest.mark.parametrize("name", ["tokenizer.json", "spk_dict.pt", "2_Dense/model.safetensors"])
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_pointer_beside_the_weights_is_refused_before_the_run(name: str, side: str, tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    put(tmp_path / side, name)
    (tmp_path / side / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * 'a'}\nsize 7\n")
    with pytest.raises(SculptError, match=rf"{name}` is a pointer of git-LFS to 7 bytes"):
        fuse(base, tuned, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_of_two_tokenizers_are_not_mixed(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    for name in ("tokenizer.model", "added_tokens.json", "tokenizer_config.json", "chat_template.jinja"):
        (base / name).write_text('{"of": "base"}')
    (tuned / "tokenizer_config.json").write_text('{"chat_template": "own"}')
    fuse(base, tuned, tmp_path / "out")
    assert (tmp_path / "out/tokenizer_config.json").read_text() == '{"chat_template": "own"}'
    assert not {"tokenizer.model", "added_tokens.json", "chat_template.jinja"} & {
        file.name for file in (tmp_path / "out").iterdir()
    }


def test_a_rewritten_configuration_is_said_to_be(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    manifest = fuse(base, tuned, tmp_path / "out", dtype="bfloat16")
    told = {(record.model, record.name): record.action for record in manifest.files}
    assert told["tuned", "config.json"] == "rewritten"
    assert told["tuned", "generation_config.json"] == "copied"


def test_the_metadata_of_weight_files_is_kept(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    own = {"format": "pt", "modelspec.title": "mine", "config": "{}", "modelspec.hash_sha256": "of other weights"}
    save_file(tensors_of(tuned), tuned / "model.safetensors", metadata=own)
    fuse(base, tuned, tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "modelspec.title": "mine", "config": "{}"}


def adapter(folder: Path) -> Path:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers by an older name
        peft.get_peft_model(model(), config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "non_lora_trainables.bin",  # LLaVA#784, #922, #1592: the trained projector
        "non_lora_state_dict.bin",
        "vit.safetensors",  # ms-swift#9187
        "new_embeddings.bin",
    ],
)
def test_weights_that_were_trained_beside_an_adapter_are_merged(name: str, tmp_path: Path) -> None:
    base, own = saved(model(), tmp_path / "base"), adapter(tmp_path / "adapter")
    trained = {"base_model.model.model.norm.weight": torch.full((16,), 3.0)}
    save_file(trained, own / name) if name.endswith("safetensors") else torch.save(trained, own / name)
    manifest = fuse(base, own, tmp_path / "out")
    assert set(tensors_of(tmp_path / "out")["model.norm.weight"].tolist()) == {2.0}
    assert name in {file.name for record in manifest.inputs for file in record.files}
    with pytest.raises(SculptError, match=r"was trained beside the adapter, and an adapter cannot store it"):
        LoneAdapter(own)


def test_what_is_beside_an_adapter_and_cannot_be_read_is_refused(tmp_path: Path) -> None:
    base, own = saved(model(), tmp_path / "base"), adapter(tmp_path / "adapter")
    torch.save({"epoch": 3}, own / "non_lora_trainables.bin")
    with pytest.raises(SculptError, match=r"non_lora_trainables.bin` is not a state dict"):
        fuse(base, own, tmp_path / "out")
    torch.save({"model.mm_projector.weight": torch.ones(3)}, own / "non_lora_trainables.bin")
    with pytest.raises(SculptError, match=r"`model.mm_projector.weight` is in .* and missing in the base"):
        fuse(base, own, tmp_path / "out")


def test_what_training_left_beside_an_adapter_is_not_its_weights(tmp_path: Path) -> None:
    base, own = saved(model(), tmp_path / "base"), adapter(tmp_path / "adapter")
    put(own, *LEFT_BY_TRAINING, "tokenizer_config.json", "README.md")
    torch.save(load_file(own / "adapter_model.safetensors"), own / "adapter_model.bin")
    manifest = fuse(base, own, tmp_path / "out")
    told = {record.name: record for record in manifest.files if record.model == "adapter"}
    assert told["tokenizer_config.json"].action == "copied"
    assert told["adapter_model.bin"].why == "of an adapter that was not read"
    assert told["checkpoint-50/"].why == "left by training"
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == 48
