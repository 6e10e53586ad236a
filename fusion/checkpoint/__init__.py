"""Checkpoints in and out: headers first, weights on demand, outputs written in place."""

from .reader import Checkpoint, TensorInfo, open_checkpoint

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]
