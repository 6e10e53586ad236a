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
    from .fusion.arithmetic.curvature import Curvature
    from .fusion.arithmetic.two_sided import Protection
    from .fusion.checkpoint import Checkpoint, open_checkpoint
    from .fusion.errors import SculptError
    from .fusion.lora.combine import combine_adapters
    from .fusion.lora.extract import extract_adapter
    from .fusion.methods import (
        AdaDare,
        ArceeFusion,
        Breadcrumbs,
        BreadcrumbsTies,
        Dare,
        DareTies,
        Della,
        DellaLinear,
        Karcher,
        Linear,
        Magnitude,
        ModelStock,
        MultiSlerp,
        NearSwap,
        NuSlerp,
        Passthrough,
        Saliency,
        Sce,
        Slerp,
        Tailor,
        TaskArithmetic,
        Ties,
    )
    from .fusion.plan.plan import Policies, Selection
    from .fusion.record.manifest import Manifest
    from .fusion.record.verify import verify
    from .fusion.run.apply import apply
    from .fusion.run.diff import diff
    from .fusion.run.fuse import Settings
    from .hessian import calibrate
    from .hessian.store.diagonal import DiagonalHessian
    from .measuring import Calibration

_PLACES = {  # of public names that are no methods
    "Calibration": ".measuring",
    "Checkpoint": ".fusion.checkpoint",
    "Curvature": ".fusion.arithmetic.curvature",
    "DiagonalHessian": ".hessian.store.diagonal",
    "Manifest": ".fusion.record.manifest",
    "Policies": ".fusion.plan.plan",
    "Protection": ".fusion.arithmetic.two_sided",
    "SculptError": ".fusion.errors",
    "Selection": ".fusion.plan.plan",
    "Settings": ".fusion.run.fuse",
    "apply": ".fusion.run.apply",
    "calibrate": ".hessian",
    "combine_adapters": ".fusion.lora.combine",
    "diff": ".fusion.run.diff",
    "extract_adapter": ".fusion.lora.extract",
    "fuse": ".api",
    "open_checkpoint": ".fusion.checkpoint",
    "verify": ".fusion.record.verify",
}

__all__ = [
    "AdaDare",
    "ArceeFusion",
    "Breadcrumbs",
    "BreadcrumbsTies",
    "Calibration",
    "Checkpoint",
    "Curvature",
    "Dare",
    "DareTies",
    "Della",
    "DellaLinear",
    "DiagonalHessian",
    "Karcher",
    "Linear",
    "Magnitude",
    "Manifest",
    "ModelStock",
    "MultiSlerp",
    "NearSwap",
    "NuSlerp",
    "Passthrough",
    "Policies",
    "Protection",
    "Saliency",
    "Sce",
    "SculptError",
    "Selection",
    "Settings",
    "Slerp",
    "Tailor",
    "TaskArithmetic",
    "Ties",
    "apply",
    "calibrate",
    "combine_adapters",
    "diff",
    "extract_adapter",
    "fuse",
    "open_checkpoint",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sculpt' has no attribute {name!r}")
    return getattr(import_module(_PLACES.get(name, ".fusion.methods"), __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
