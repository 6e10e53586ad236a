"""Files and folders that people take for checkpoints: what each is, and how it becomes one."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import CheckpointError, first_line

LFS = b"version https://git-lfs.github.com/spec/"
PATCH_FORMAT = "sculpt-patch"  # what a patch says of itself in its header
POINTER_BYTES = 1024  # no pointer is longer

GATHER = (
    "name the `global_step…` folder of the same checkpoint, gather the weights when saving "
    "(`stage3_gather_16bit_weights_on_model_save`), or run `zero_to_fp32.py`"
)
# The first that is there names a folder: a pattern, what it is, how it becomes a checkpoint.
FOLDERS = (
    (
        "zero_to_fp32.py",
        "what DeepSpeed puts beside its shards",
        "the shards lie in `global_step…/`, which is not here",
    ),
    ("global_step*", "a folder of DeepSpeed's without `*_model_states.pt`", "is the copy complete?"),
    (
        "latest_checkpointed_iteration.txt",
        "Megatron's shards",
        "convert them with the tools of the trainer that wrote them",
    ),
    ("mp_rank_*", "Megatron's shards", "convert them with the tools of the trainer that wrote them"),
    (
        "model_world_size_*_rank_*.pt",
        "verl's shards, a part for each process",
        "`python -m verl.model_merger merge --backend fsdp --local_dir FOLDER --target_dir OUTPUT` gathers them",
    ),
    ("*.ckpt", "a Lightning checkpoint", "name the file itself"),
    ("checkpoint-*", "a training's output, its checkpoints in folders of their own", "name one of them"),
    ("*/adapter_config.json", "adapters in folders of their own", "name one of them"),
    *(
        (pattern, what, "name the checkpoint that it was converted from")
        for pattern, what in (
            ("*.onnx", "an ONNX graph"),
            ("openvino_model.*", "an OpenVINO model"),
            ("*.npz", "arrays of NumPy, MLX's old layout"),
            ("*.mlpackage", "a Core ML model"),
        )
    ),
    *(
        (pattern, what, "`from_pretrained` of transformers 4 reads it, and `save_pretrained` writes safetensors")
        for pattern, what in (("tf_model*.h5", "weights of TensorFlow"), ("flax_model*.msgpack", "weights of Flax"))
    ),
)


def refuse_foreign_folder(folder: Path) -> None:
    """Refuse a folder that holds a model in another layout, by the name of the layout."""
    for pattern, what, hint in FOLDERS:
        found = next(iter(sorted(folder.glob(pattern))), None)
        if found is not None:
            named = found.relative_to(folder)
            raise CheckpointError(f"`{folder}` holds no checkpoint but {what} (`{named}`)", hint=hint)


def refuse_pipe(file: Path) -> None:
    """Raise CheckpointError where a file is a pipe or a device, which may never end."""
    if file.exists() and not file.is_file() and not file.is_dir():
        raise CheckpointError(f"`{file}` is not a regular file")


def refuse_foreign_file(file: Path) -> None:
    """Refuse a file whose first bytes say that it holds no tensors that are read here.

    Raises:
        CheckpointError: It is a pointer of git-LFS, or GGUF under another name, or no regular file.
    """
    refuse_pipe(file)
    try:
        with file.open("rb") as stream:
            start = stream.read(POINTER_BYTES)
    except OSError as error:
        raise CheckpointError(f"cannot read `{file}`: {error.strerror or error}") from error
    if start.startswith(LFS):
        size = re.search(rb"^size (\d+)", start, re.MULTILINE)
        told = f" to {int(size[1]):,} bytes" if size else ""
        raise CheckpointError(
            f"`{file}` is a pointer of git-LFS{told}, not the file itself",
            hint="`git lfs pull` in its folder, or `hf download`, fetches the file",
        )
    if start.startswith(b"GGUF") and file.suffix != ".gguf":
        raise CheckpointError(f"`{file}` is a GGUF file, llama.cpp's format", hint="name it `*.gguf` to have it read")


def torch_error(file: Path, error: BaseException) -> CheckpointError:
    """Return what is wrong with a torch file, without torch's own advice, which is to run what the file says."""
    text = str(error)
    if "torch.distributed" in text or "DTensor" in text:
        return needs_running(file, "DTensor")
    needed = re.search(r"GLOBAL ([\w.]+)", text)
    if needed:
        return needs_running(file, needed[1])
    damaged = isinstance(error, pickle.UnpicklingError) and "weights_only" in text
    told = "it is damaged, or holds more than tensors" if damaged else first_line(error)
    return CheckpointError(f"cannot read `{file}` as a torch file of tensors: {told}")


def needs_running(file: Path, what: str) -> CheckpointError:
    """Return the refusal of something, in the place of a tensor, that a pickle would have had made."""
    if "torch.distributed" in what or "DTensor" in what:
        return CheckpointError(
            f"`{file}` holds DTensors, the parts of tensors that were on several devices",
            hint="gather them when saving, by `full_tensor()` or FSDP's full state dict",
        )
    return CheckpointError(
        f"`{file}` holds `{what}`, which only running the file's own code would load",
        hint="load it where it is trusted, and save its state dict as safetensors",
    )


def lora_names(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the first name that is a factor of a LoRA, and what the layout is called; None where there is none."""
    names = list(names)
    text = "\n".join(names)  # looked through at once: a model may have 100,000 names
    words = [word for word in ("lora", "hada_w", "lokr_", "oft_") if word in text]
    for name in names if words else ():
        if not any(word in name for word in words):
            continue
        if ".lora_down." in name or ".lora_up." in name:
            return name, "kohya's"
        if re.search(r"\.(hada_w[12]_[ab]|lokr_[wt][12](_[ab])?|oft_blocks|oft_diag)$", name):
            return name, "LyCORIS'"
        if re.search(r"\.lora_[ab]$", name):
            return name, "MLX's"
        if re.search(r"\.lora(_linear_layer)?\.(down|up)\.weight$|_lora\.(down|up)\.weight$", name):
            return name, "diffusers'"
        if re.search(r"\.lora_(embedding_)?[AB](\.|$)", name):
            return name, "PEFT's"
    return None
