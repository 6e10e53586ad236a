"""Models in and out: headers first, weights on demand, outputs written in place."""

from .folder import Checkpoint
from .memory import MemorySource
from .open import open_checkpoint
from .source import Source
from .tensor_info import TensorInfo

__all__ = ["Checkpoint", "MemorySource", "Source", "TensorInfo", "open_checkpoint"]
