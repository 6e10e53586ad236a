"""The one loader of whole models: as transformers loads them, on one device or streamed from the disk.

`skeleton.build` makes the same model without weights, for those who fill it block by block.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from ..fusion.checkpoint import Asked, Source, open_checkpoint
from ..fusion.checkpoint.output.scratch import Scratch
from ..fusion.checkpoint.pretrained import is_encoder_decoder, load_config, load_pretrained
from ..fusion.errors import ModelError
from ..fusion.file_kinds import GENERATION_CONFIG
from .devices import compute_dtype, pick_device
from .skeleton import build

HEADROOM = 0.9  # of the memory, which weights may fill; the rest is for activations


@dataclass(eq=False, kw_only=True)
class LiveModel:
    """A model in eval mode; a context manager, as one that is streamed has a folder to be removed.

    Attributes:
        path: The checkpoint it was loaded from, with configuration and tokenizer.
        device: Where inputs go.
        streamed: Whether weights come from the disk when they are needed, as they do not fit.
        trust_remote_code: Whether code in the folder may run.
    """

    path: Path
    model: Any
    device: torch.device
    streamed: bool = False
    trust_remote_code: bool = False
    _offload: Scratch | None = field(default=None, repr=False)
    _source: Source | None = field(default=None, repr=False)  # the folder of a patched one goes with it

    def __enter__(self) -> LiveModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the model and of what was offloaded."""
        self.model = None
        if self._offload is not None:
            self._offload.close()

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer in the checkpoint's folder, with something to pad with.

        Raises:
            ModelError: There is none that transformers can load.
        """
        from transformers import AutoTokenizer

        tokenizer = load_pretrained(AutoTokenizer, self.path, "tokenizer", trust_remote_code=self.trust_remote_code)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        return tokenizer

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether prompt and completion go to different halves."""
        return is_encoder_decoder(self.model.config)

    @property
    def has_classes(self) -> bool:
        """Whether the model ends in a classification head."""
        return type(self.model).__name__.endswith("Classification")

    @property
    def can_generate(self) -> bool:
        """Whether the model writes text."""
        return bool(self.model.can_generate())


def load_model(
    source: Source | Asked,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    auto_class: str | None = None,
    trust_remote_code: bool = False,
    may_stream: bool = True,
    memory_bytes: int | None = None,
) -> LiveModel:
    """Return the model of a checkpoint with its weights, in eval mode: as any user would load it.

    Args:
        source: A folder, one file of weights beside its configuration, or an adapter over its base.
        device, dtype: As for `pick_device` and `compute_dtype`; a dtype of torch is taken as it is.
        may_stream: Whether a model that does not fit runs with its weights read from the disk as they are needed; they
            can then be neither written nor trained.
        memory_bytes: What the weights may fill before that; None is what the device has free.

    Raises:
        ModelError: transformers cannot load it, or the weights are not the model's.
        DeviceError: The device is not there.
    """
    checkpoint = source if isinstance(source, Source) else open_checkpoint(source)
    where = pick_device(device)
    kind = compute_dtype(dtype, checkpoint, where) if isinstance(dtype, str) else dtype
    # Built first without weights: it costs little, and refuses what `from_pretrained` would fill with random values.
    skeleton = build(
        checkpoint,
        auto_class=auto_class,
        dtype=kind,
        device=torch.device("cpu"),
        seed=0,
        trust_remote_code=trust_remote_code,
    )
    needed, room = _bytes_of(checkpoint, kind), _room(where) if memory_bytes is None else memory_bytes
    options: dict[str, Any] = {"dtype": kind, "config": load_config(checkpoint, trust_remote_code=trust_remote_code)}
    folder: Path | None = skeleton.folder
    offload = None
    if may_stream and needed > room:
        offload = Scratch()
        limits = {"cpu" if where.type == "cpu" else (where.index or 0): room}
        options |= {"device_map": "auto", "max_memory": limits, "offload_folder": str(offload.folder)}
    plain = checkpoint.folder is not None and not (
        checkpoint.wrappers or checkpoint.decoded or checkpoint.is_foreign or checkpoint.is_elsewhere
    )
    if checkpoint.base is not None or not plain:
        if offload is not None:
            raise ModelError(
                f"`{checkpoint.ref}` takes {needed} bytes of the {room} that are free, and can only be run whole",
                hint="a folder with all the weights in it is read as it is needed",
            )
        folder, options = None, options | _given(checkpoint, skeleton.folder)
    model: Any = load_pretrained(
        type(skeleton.model), folder, "weights", trust_remote_code=trust_remote_code, **options
    )
    if offload is None:
        model = model.to(where)
    return LiveModel(
        path=skeleton.folder,
        model=model.eval(),
        device=where,
        streamed=offload is not None,
        trust_remote_code=trust_remote_code,
        _offload=offload,
        _source=checkpoint,
    )


def _given(checkpoint: Source, folder: Path) -> dict[str, Any]:
    """Return the arguments that hand the weights over, where they are not those that the folder holds."""
    from transformers import GenerationConfig

    found: dict[str, Any] = {"state_dict": {name: read_tensor(checkpoint, name) for name in checkpoint.tensors}}
    if (folder / GENERATION_CONFIG).is_file():
        found["generation_config"] = load_pretrained(GenerationConfig, folder, "generation config")
    return found


def read_tensor(checkpoint: Source, name: str) -> torch.Tensor:
    """Return a copy of a tensor on the CPU, in its stored dtype."""
    info = checkpoint.tensors[name]
    tensor = torch.empty(info.shape, dtype=getattr(torch, info.kind.torch))
    if tensor.numel():
        flat = tensor.reshape(-1).view(torch.uint8).numpy()
        flat[:] = checkpoint.read(name).view(np.uint8)
        checkpoint.release(name)
    return tensor


def as_torch(array: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor over the same memory, which may be only read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)


def fits(checkpoint: Source, kind: torch.dtype, device: torch.device) -> bool:
    """Return whether a device has the room for the weights of a model."""
    return _bytes_of(checkpoint, kind) <= _room(device)


def _bytes_of(checkpoint: Source, kind: torch.dtype) -> int:
    return sum(info.num_elements for info in checkpoint.tensors.values()) * kind.itemsize


def _room(device: torch.device) -> int:
    """Return what weights may fill of a device."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(HEADROOM * free)
