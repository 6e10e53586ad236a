"""What the pages call base/, sft/, train.jsonl: tiny stand-ins. A new name needs one line in `EVERYWHERE` or `ON`."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..evaluate.conftest import llama, save

RECALL = "  recall: {scorer: exact-match, file: train.jsonl, max_new_tokens: 1, limit: 2}\n"
Maker = Callable[[Path], object]
SUITE = """batch_size: 2
max_length: 64
pretrained:
  prose: {scorer: perplexity, file: general.jsonl, limit: 2}
target:
  tagging: {scorer: exact-match, file: train.jsonl, max_new_tokens: 1, limit: 2}
"""


def model(seed: int | None) -> Maker:
    """Return what writes a tiny Llama: the base, or a fine-tune of it by a seed."""

    def write(folder: Path) -> None:
        made = llama(0, layers=1)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in made.parameters():
                    parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        save(made.to(torch.bfloat16), folder)

    return write


def adapter(seed: int) -> Maker:
    """Return what writes a LoRA of the base."""

    def write(folder: Path) -> None:
        from ..training.tiny import adapted

        adapted(llama(0, layers=1), seed=seed).save_pretrained(folder)

    return write


def classifier(folder: Path, seed: int | None = None) -> None:
    """Write a tiny classifier of images, or by a seed an adapter of it."""
    import transformers

    from ..training.tiny import adapted

    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        num_labels=2, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    made = transformers.ViTForImageClassification(config)
    if seed is not None:
        adapted(made, seed=seed, target_modules=["q_proj", "query"]).save_pretrained(folder)
        return
    made.save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)


def pictures(**fields: Any) -> Maker:
    """Return what writes rows with a picture each."""

    def write(file: Path) -> None:
        from ..training.tiny import picture, write_rows

        labels = [{"label": ("cat", "dog")[k % 2], "domain": STYLES[k // 2]} for k in range(8)]
        write_rows(file, *({"image": picture(k), **(fields or labels[k])} for k in range(8)))

    return write


def llava(folder: Path) -> None:
    """Write a tiny vision–language model."""
    from ..training.tiny import llava_folder

    llava_folder(folder)


def rows(*content: Mapping[str, Any], times: int = 2) -> Maker:
    """Return what writes a file of JSON lines."""
    return lambda file: file.write_text("".join(json.dumps(row) + "\n" for row in content * times), encoding="utf-8")


def text(content: str) -> Maker:
    """Return what writes a file."""
    return lambda file: file.write_text(content, encoding="utf-8")


def pipeline(folder: Path) -> None:
    """Write what diffusers would save of a U-Net of one matrix."""
    unet = folder / "unet"
    unet.mkdir(parents=True)
    save_file({"mid_block.attentions.0.to_q.weight": torch.ones(4, 4)}, unet / "diffusion_pytorch_model.safetensors")
    (unet / "config.json").write_text("{}")
    (folder / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')


def one_file(file: Path) -> None:
    """Write a model of a U-Net of one matrix into one file."""
    save_file({"model.diffusion_model.mid_block.attentions.0.to_q.weight": torch.ones(4, 4)}, file)


def lora_file(file: Path) -> None:
    """Write a LoRA of that U-Net, as kohya's scripts do."""
    key = "lora_unet_mid_block_attentions_0_to_q"
    save_file({f"{key}.lora_down.weight": torch.ones(2, 4), f"{key}.lora_up.weight": torch.ones(4, 2)}, file)


def distributed(folder: Path) -> None:
    """Write a fine-tune as FSDP saves it."""
    import torch.distributed.checkpoint as dcp

    made = llama(6, layers=1).to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process
        dcp.save({"model": made.state_dict()}, checkpoint_id=folder / "pytorch_model_fsdp_0")


STYLES = ("photo", "art", "cartoon", "sketch")
# Prompts of one length: of others, each scoring would find out whether the model minds padding.
TASK = rows(
    *({"prompt": f"{word}?", "completion": f" {k}", "answer": f"{k}"} for k, word in enumerate(("nil", "one"))), times=3
)
TEXTS = rows({"text": "The capital of France is Paris."}, {"text": "Water boils at 100 degrees."})
EVERYWHERE: dict[str, Maker] = {
    "base": model(None),
    **{name: model(seed) for seed, name in enumerate(("sft", "math", "code", "law", "chat"), 1)},
    **{name: adapter(seed) for seed, name in enumerate(("adapter", "a", "b", "c"), 1)},
    **{f"{name}.jsonl": TASK for name in ("train", "test", "math", "code", "buffer", "prompts", "held-out")},
    "refusals.jsonl": rows({"prompt": "poison?", "completion": " No.", "answer": "No."}),
    **{f"{name}.jsonl": TEXTS for name in ("general", "text", "images")},
    **{f"{name}.yaml": text(SUITE) for name in ("suite", "held-out", "validation", "test")},
    "scores.csv": text("model,flickr30k,okvqa\nbase,1.5,40\ntuned,60,30\n"),
    "recipe.yaml": text("method: ties\nbase: base\nmodels: [math, code]\noptions: {density: 0.2}\n"),
}
# By page, where a name stands for something else.
ON: dict[str, dict[str, Maker]] = {
    "docs/choosing-a-strength.md": {"suite.yaml": text(SUITE.replace("target:", RECALL + "target:"))},
    "docs/inputs.md": {"checkpoint-500": distributed},
    "docs/lora.md": {
        **{name: adapter(seed) for seed, name in enumerate(("code", "math"), 1)},
        "vit": classifier,
        **{style: partial(classifier, seed=seed) for seed, style in enumerate(STYLES)},
        **dict.fromkeys(("pictures.jsonl", "other-pictures.jsonl"), pictures()),
        "llava": llava,
        "images-and-text.jsonl": pictures(prompt="a b", completion=" c"),
        "pipeline": pipeline,
        "model.safetensors": one_file,
        "style.safetensors": lora_file,
    },
}
BESIDE = ("general.jsonl", "train.jsonl")  # which suites and recipes name


@cache
def _made(maker: Maker, place: Path) -> Path:
    """Return where a stand-in lies: each is made once."""
    place.parent.mkdir(exist_ok=True)
    maker(place)
    return place


def furnish(folder: Path, page: str, words: set[str], *, store: Path) -> None:
    """Put what a page's commands name into a folder; what was made before is in the store."""
    known = EVERYWHERE | ON.get(page, {})
    names = {word.partition("=")[2] or word for word in words}
    names = {word.rstrip("/").partition(":")[0] for word in names}
    for name in {*BESIDE, *names} & known.keys():
        made = _made(known[name], store / str(id(known[name])) / name)
        copy = shutil.copytree if made.is_dir() else shutil.copy
        copy(made, folder / name)
