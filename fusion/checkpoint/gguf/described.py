"""What lies beside a model in the transformers layout, made of what a GGUF file says: config, tokenizer, names.

It takes transformers seconds, so the result is kept in the user's cache, under a digest of all that it was made of.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, final

from ...cache import default_cache
from ...errors import CheckpointError, SculptError, first_line
from ...file_kinds import CONFIG, GENERATION_CONFIG
from ..companions import Companion, look_beside
from ..json_file import read_json
from ..output.scratch import Scratch
from ..pretrained import load_pretrained, read_config
from .blocks import needs_gguf
from .file import GgufFile
from .header import GgufTensor
from .layout import GgufLayout
from .rope import scaled

EDITION = "1"  # of what is kept: another one makes it again
LAYOUTS, MODEL = "layouts.json", "model"
SPECIAL = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
# What a file says and transformers does not take from it for every architecture.
SIZES = {
    "attention.key_length": "head_dim",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
NEEDED = ("gguf", "torch", "transformers")


@final
@dataclass(frozen=True, kw_only=True)
class Described:
    """A GGUF model in transformers' words.

    Attributes:
        folder: `config.json` and the files of the tokenizer.
        left: Tensors that are no parameters.
        scratch: What keeps the folder, where it is not in the cache.
    """

    folder: Path
    layouts: tuple[GgufLayout, ...]
    left: tuple[str, ...]
    scratch: Scratch | None = None


def describe(files: Sequence[GgufFile], own: Path | None) -> Described:
    """Return what transformers makes of a model's files; the first one says what the model is.

    Args:
        own: A folder whose `config.json` and tokenizer are taken rather than what the file says.

    Raises:
        CheckpointError: The architecture is unknown, or tensors do not fit it.
        ModelError: transformers cannot make the config or the tokenizer.
    """
    beside = _own(own, files)
    try:
        key = _key(files, beside)
        place, scratch = default_cache() / f"gguf-{key[:32]}", None
        if not (place / LAYOUTS).is_file():
            place, scratch = _make(files, beside, place)
    except PackageNotFoundError as error:
        raise needs_gguf(f"`{files[0].file}` is a GGUF file, which takes {' and '.join(NEEDED)} to read") from error
    content = read_json(place / LAYOUTS)
    layouts = tuple(_layout(found) for found in content["layouts"])
    return Described(folder=place / MODEL, layouts=layouts, left=tuple(content["left"]), scratch=scratch)


def _layout(found: dict[str, Any]) -> GgufLayout:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return GgufLayout(**values)


def _own(folder: Path | None, files: Sequence[GgufFile]) -> dict[str, Companion]:
    """Return the files that tell of a model in its folder, by name: whoever made the file copied them there."""
    found = [] if folder is None else look_beside(folder, [opened.file for opened in files])
    told = {entry.name.as_posix(): entry for entry in found if entry.left is None and len(entry.name.parts) == 1}
    config = read_json(told[CONFIG].file) if CONFIG in told else None
    if not isinstance(config, dict) or not config.get("architectures"):
        told.pop(CONFIG, None)  # of others' uploads it says no more than `model_type`
        told.pop(GENERATION_CONFIG, None)
    kinds = {"tokenizer", "template", "processor"}
    return {name: entry for name, entry in told.items() if entry.kind in kinds or name.endswith("config.json")}


def _key(files: Sequence[GgufFile], own: Mapping[str, Companion]) -> str:
    digest = sha256(json.dumps([EDITION, *(version(name) for name in NEEDED)]).encode())
    for opened in files:
        digest.update(sha256(opened.header.content).digest())
    for name in sorted(own):
        digest.update(sha256(name.encode()).digest() + sha256(own[name].file.read_bytes()).digest())
    return digest.hexdigest()


def _make(files: Sequence[GgufFile], own: Mapping[str, Companion], place: Path) -> tuple[Path, Scratch | None]:
    """Make what is kept, and return where it is: in the cache, or where that cannot be written in a scratch folder."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        building, scratch = Path(tempfile.mkdtemp(prefix=".gguf-", dir=place.parent)), None
    except OSError:
        scratch = Scratch()
        building = scratch.folder
    try:
        (building / MODEL).mkdir()
        content = _content(files, own, building / MODEL)
        (building / LAYOUTS).write_text(json.dumps(content), encoding="utf-8")
        if scratch is None:
            try:
                os.rename(building, place)
            except OSError:  # another process was faster
                if not (place / LAYOUTS).is_file():
                    raise
    except OSError as error:
        raise CheckpointError(f"cannot write `{error.filename or building}`: {error.strerror or error}") from error
    finally:
        if scratch is None:
            shutil.rmtree(building, ignore_errors=True)
    return (place, None) if scratch is None else (building, scratch)


def _content(files: Sequence[GgufFile], own: Mapping[str, Companion], folder: Path) -> dict[str, Any]:
    """Write a model's folder, without its weights; return its layouts."""
    first = files[0]
    architecture = first.header.architecture
    tensors = {name: tensor for opened in files for name, tensor in opened.header.tensors.items()}
    try:
        from . import rules

        rules.refuse_unknown(architecture)
        for name, entry in own.items():
            shutil.copyfile(entry.file, folder / name)
        if CONFIG not in own:
            _write_config(files, tensors, folder)
        if not any(entry.kind == "tokenizer" for entry in own.values()):
            _write_tokenizer(first, folder)
        config = read_config(folder, read_json(folder / CONFIG), len(tensors))
        layouts, left = rules.layouts(architecture, config, tensors)
    except (SculptError, OSError):
        raise
    except ImportError as error:
        raise needs_gguf(f"`{first.file}` is a GGUF file: {first_line(error)}") from error
    except Exception as error:  # transformers raises anything on what it does not know
        raise CheckpointError(f"transformers cannot read `{first.file}`: {first_line(error)}") from error
    return {"layouts": [asdict(layout) for layout in layouts], "left": left}


def _write_config(files: Sequence[GgufFile], tensors: Mapping[str, GgufTensor], folder: Path) -> None:
    """Write the configuration that a file implies."""
    from transformers import AutoConfig

    from . import rules

    first = files[0]
    said, architecture = first.header.said, first.header.architecture
    config = load_pretrained(AutoConfig, first.file.parent, "config", gguf_file=first.file.name)
    config.architectures = [rules.class_name(config)]
    vars(config).pop("_model_name_or_path", None)  # `general.name`, which is no folder
    if len(files) > 1:  # transformers looks for the output's vocabulary in the first file alone
        config.tie_word_embeddings = "output.weight" not in tensors or architecture in ("falcon", "bloom")
    for key, ours in SPECIAL.items():
        found = said.get(f"tokenizer.ggml.{ours}_token_id")
        if not isinstance(getattr(config, key, None), list):  # transformers knows of more than one
            setattr(config, key, found)
    below = {key.partition(".")[2]: value for key, value in said.items() if key.startswith(f"{architecture}.")}
    for key, name in SIZES.items():
        if key in below and hasattr(config, name) and architecture != "gemma4":  # which has two sizes of heads
            setattr(config, name, below[key])
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and "rope_theta" in rope:
        freqs = next((opened for opened in files if "rope_freqs.weight" in opened.header.tensors), None)
        factors = None if freqs is None else rules.floats(freqs, "rope_freqs.weight")
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        found = scaled(below, factors, rope["rope_theta"], width)
        config.rope_parameters = rope | found if found else rope
    elif any(rules.ROPE.fullmatch(name) for name in tensors):
        scaled({"rope.scaling.type": "factors of its own"}, None, 0, 0)
    config.dtype = rules.dtype_of(tensors)
    config.save_pretrained(folder)


def _write_tokenizer(first: GgufFile, folder: Path) -> None:
    from transformers import AutoTokenizer

    hint = "put the original's tokenizer files beside the GGUF file, and name their folder"
    found = load_pretrained(AutoTokenizer, first.file.parent, "tokenizer", hint=hint, gguf_file=first.file.name)
    found.save_pretrained(folder)
