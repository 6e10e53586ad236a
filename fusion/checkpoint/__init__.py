"""Models in and out: headers first, weights on demand, outputs written in place."""

from ..ref import Asked, ModelRef, find_model
from .folder import Checkpoint
from .memory import MemorySource
from .open import open_checkpoint
from .source import Source
from .tensor_info import TensorInfo

__all__ = ["Asked", "Checkpoint", "MemorySource", "ModelRef", "Source", "TensorInfo", "find_model", "open_checkpoint"]
