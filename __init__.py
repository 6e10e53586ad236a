"""sculpt: checkpoint surgery for fine-tuned models that forgot.

    import sculpt
    sculpt.calibrate("sft/", data="train.jsonl", output="hessian.safetensors")
    sculpt.fuse("base/", "sft/", hessian="hessian.safetensors", method=sculpt.AdaDare(gamma=0.5, sparsity=0.9))

The public names are imported when they are first used, so `import sculpt` costs nothing.
"""

# ruff: noqa: F401 (these are for type checkers; `__getattr__` imports what is used)
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import apply_patch, fuse, load, pack
    from .fusion.arithmetic.curvature import Curvature
    from .fusion.arithmetic.two_sided import Protection
    from .fusion.checkpoint import Checkpoint, open_checkpoint
    from .fusion.errors import SculptError
    from .fusion.lora.combine import combine_adapters
    from .fusion.lora.extract import extract_adapter
    from .fusion.methods import *  # noqa: F403 (whatever is a method there is public)
    from .fusion.plan.plan import Policies, Selection
    from .fusion.record.manifest import Manifest
    from .fusion.record.verify import verify
    from .fusion.run.apply import apply
    from .fusion.run.calibration import Calibration
    from .fusion.run.diff import diff
    from .fusion.run.settings import Settings
    from .hessian import calibrate
    from .hessian.store.diagonal import DiagonalHessian
    from .repairing import RepairCallback

_PLACES = {  # of public names that are no methods
    "Calibration": ".fusion.run.calibration",
    "GeneralSide": ".fusion.run.calibration",
    "Checkpoint": ".fusion.checkpoint",
    "Curvature": ".fusion.arithmetic.curvature",
    "DiagonalHessian": ".hessian.store.diagonal",
    "Manifest": ".fusion.record.manifest",
    "Policies": ".fusion.plan.plan",
    "RepairCallback": ".repairing",
    "Protection": ".fusion.arithmetic.two_sided",
    "SculptError": ".fusion.errors",
    "Selection": ".fusion.plan.plan",
    "Settings": ".fusion.run.settings",
    "apply": ".fusion.run.apply",
    "apply_patch": ".api",
    "calibrate": ".hessian",
    "combine_adapters": ".fusion.lora.combine",
    "diff": ".fusion.run.diff",
    "extract_adapter": ".fusion.lora.extract",
    "fuse": ".api",
    "load": ".api",
    "open_checkpoint": ".fusion.checkpoint",
    "pack": ".api",
    "verify": ".fusion.record.verify",
}


def _imported(module: str) -> Any:
    """Return a module; a package that is not installed is told with what installs it."""
    try:
        return import_module(module, __name__)
    except ModuleNotFoundError as error:
        from .fusion.errors import missing_extra

        missing = missing_extra(error)
        if missing is None:
            raise
        raise missing from error


def __getattr__(name: str) -> Any:
    """Return a public name; `__all__` too is made when it is asked for, as it lists the methods."""
    if name in _PLACES:
        return getattr(_imported(_PLACES[name]), name)
    if name == "__version__":
        return import_module("importlib.metadata").version("checkpoint-sculpt")
    if name == "__all__" or name[:1].isupper():
        methods = {found.__name__: found for found in import_module(".fusion.methods", __name__).METHODS.values()}
        if name == "__all__":
            return sorted([*_PLACES, *methods])
        if name in methods:
            return methods[name]
    raise AttributeError(f"module 'sculpt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])
