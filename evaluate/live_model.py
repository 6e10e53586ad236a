"""A model that runs: as transformers loads it, with its tokenizer, on one device or streamed from the disk."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch

from ..fusion.checkpoint import Source, open_checkpoint
from ..fusion.errors import DataError, ModelError
from ..live.devices import compute_dtype, pick_device
from ..live.skeleton import build

HEADROOM = 0.9  # of the memory, which weights may fill; the rest is for activations


@dataclass(eq=False, kw_only=True)
class LiveModel:
    """A model in eval mode; a context manager, as one that is streamed has a folder to be removed.

    Attributes:
        path: The checkpoint it was loaded from, with configuration and tokenizer.
        device: Where inputs go.
        streamed: Whether weights come from the disk when they are needed, as they do not fit.
    """

    path: Path
    model: Any
    device: torch.device
    streamed: bool = False
    _offload: Any = field(default=None, repr=False)

    def __enter__(self) -> LiveModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the model and of what was offloaded."""
        self.model = None
        if self._offload is not None:
            self._offload.cleanup()

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer in the checkpoint's folder, with something to pad with.

        Raises:
            DataError: There is none that transformers can load.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
        except Exception as error:  # transformers raises anything on missing or damaged files
            raise DataError(
                f"`{self.path}` has no tokenizer that transformers can load: {_first_line(error)}"
            ) from error
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        return tokenizer

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether prompt and completion go to different halves."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def has_classes(self) -> bool:
        """Whether the model ends in a classification head."""
        return type(self.model).__name__.endswith("Classification")

    @property
    def can_generate(self) -> bool:
        """Whether the model writes text."""
        return bool(self.model.can_generate())


def load_model(path: Path, *, device: str = "auto", dtype: str = "auto", memory_bytes: int | None = None) -> LiveModel:
    """Return the model of a checkpoint folder, as any user would load it.

    Args:
        dtype: Of the forward; `auto` is float32 on a CPU and the stored one elsewhere.
        memory_bytes: What the weights may fill; None is what the device has free. A model that does not fit is
            streamed: its weights come from the disk as they are needed.

    Raises:
        ModelError: transformers cannot load it.
    """
    checkpoint = open_checkpoint(path)
    where = pick_device(device)
    kind = compute_dtype(dtype, checkpoint, where)
    cls = type(_skeleton(checkpoint, kind).model)
    needed = sum(info.num_elements for info in checkpoint.tensors.values()) * torch.empty(0, dtype=kind).itemsize
    room = int(HEADROOM * _free_memory(where)) if memory_bytes is None else memory_bytes
    options: dict[str, Any] = {"dtype": kind, "local_files_only": True}
    offload = None
    if needed > room:
        offload = tempfile.TemporaryDirectory(prefix="sculpt-offload-")
        limits = {"cpu" if where.type == "cpu" else (where.index or 0): room}
        options |= {"device_map": "auto", "max_memory": limits, "offload_folder": offload.name}
    folder = checkpoint.folder or checkpoint.path.parent
    try:
        model = cls.from_pretrained(folder, **options)
    except Exception as error:  # transformers raises anything
        raise ModelError(f"transformers cannot load `{path}`: {_first_line(error)}") from error
    if offload is None:
        model = model.to(where)
    return LiveModel(path=folder, model=model.eval(), device=where, streamed=offload is not None, _offload=offload)


def _skeleton(checkpoint: Source, dtype: torch.dtype) -> Any:
    return build(checkpoint, auto_class=None, dtype=dtype, device=torch.device("cpu"), seed=0, trust_remote_code=False)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
