"""sculpt: checkpoint surgery for fine-tuned models that forgot.

    import sculpt
    sculpt.calibrate("sft/", data="train.jsonl", output="hessian.safetensors")
    sculpt.fuse("base/", "sft/", hessian="hessian.safetensors", method=sculpt.AdaDare(gamma=0.5, sparsity=0.9))

The public names are imported when they are first used, so `import sculpt` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import fuse
    from .fusion.checkpoint import Checkpoint, open_checkpoint
    from .fusion.curvature import Curvature
    from .fusion.diff import diff
    from .fusion.errors import SculptError
    from .fusion.fuse import Settings
    from .fusion.lora.combine import combine_adapters
    from .fusion.lora.extract import extract_adapter
    from .fusion.manifest import Manifest
    from .fusion.methods import AdaDare, Dare, TaskArithmetic
    from .fusion.plan import Policies, Selection
    from .fusion.two_sided import Protection
    from .fusion.verify import verify
    from .hessian import calibrate
    from .hessian.diagonal import DiagonalHessian
    from .measuring import Calibration

_PLACES = {
    "AdaDare": ".fusion.methods",
    "Calibration": ".measuring",
    "Checkpoint": ".fusion.checkpoint",
    "Curvature": ".fusion.curvature",
    "Dare": ".fusion.methods",
    "DiagonalHessian": ".hessian.diagonal",
    "Manifest": ".fusion.manifest",
    "Policies": ".fusion.plan",
    "Protection": ".fusion.two_sided",
    "SculptError": ".fusion.errors",
    "Selection": ".fusion.plan",
    "Settings": ".fusion.fuse",
    "TaskArithmetic": ".fusion.methods",
    "calibrate": ".hessian",
    "combine_adapters": ".fusion.lora.combine",
    "diff": ".fusion.diff",
    "extract_adapter": ".fusion.lora.extract",
    "fuse": ".api",
    "open_checkpoint": ".fusion.checkpoint",
    "verify": ".fusion.verify",
}

__all__ = [
    "AdaDare",
    "Calibration",
    "Checkpoint",
    "Curvature",
    "Dare",
    "DiagonalHessian",
    "Manifest",
    "Policies",
    "Protection",
    "SculptError",
    "Selection",
    "Settings",
    "TaskArithmetic",
    "calibrate",
    "combine_adapters",
    "diff",
    "extract_adapter",
    "fuse",
    "open_checkpoint",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'sculpt' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
