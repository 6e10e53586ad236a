"""sculpt: checkpoint surgery for fine-tuned models that forgot.

    import sculpt
    fused = sculpt.fuse("base/", "sft/", data="train.jsonl", method="two-sided")
    sculpt.evaluate(fused, "suite.yaml")
    model = sculpt.load(fused)

There is a function for each command: `repair`, `fuse`, `merge`, `calibrate`, `sweep`, `benchmark`, `evaluate`, `gate`,
`compare`, `report`, `bound`, `diff`, `verify`, `train` and the rest of `sculpt.__all__`. A model is a path, a name on
the hub, what `fuse` returned, a model of transformers or PEFT, or tensors by name. Whatever is wrong is a `SculptError`
of one sentence.

The public names are imported when they are first used, so `import sculpt` costs nothing.
"""

# ruff: noqa: F401 (these are for type checkers; `__getattr__` imports what is used)
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import apply_patch, bound, check_loads, fuse, load, merge, pack, state_dict
    from .evaluate.against import moved_from
    from .evaluate.answers import SideBySide, compare
    from .evaluate.benchmark import Benchmark, benchmark
    from .evaluate.evaluate import SuiteScores, evaluate
    from .evaluate.flips import flips
    from .evaluate.options import Scoring
    from .evaluate.points import Sweep
    from .evaluate.release import Judgement, gate
    from .evaluate.repair import Repaired, repair
    from .evaluate.report import report
    from .evaluate.starter import write_suite
    from .evaluate.suite import read_suite
    from .evaluate.sweeping import sweep
    from .evaluate.training_sweep import sweep_training
    from .fusion.arithmetic.curvature import Curvature
    from .fusion.arithmetic.two_sided import Protection
    from .fusion.checkpoint import Checkpoint, open_checkpoint
    from .fusion.checkpoint.output.status import unfinished
    from .fusion.errors import SculptError
    from .fusion.lora.combine import combine_adapters
    from .fusion.lora.density import adapter_density
    from .fusion.lora.extract import extract_adapter
    from .fusion.lora.prune import prune_adapter
    from .fusion.methods import *  # noqa: F403 (whatever is a method there is public)
    from .fusion.methods.named import method_named
    from .fusion.places.push import push
    from .fusion.places.settings import streaming
    from .fusion.plan.plan import Policies, Selection
    from .fusion.record.manifest import Manifest
    from .fusion.record.signing import attest
    from .fusion.record.verify import verify
    from .fusion.run.apply import apply
    from .fusion.run.bounds import Bounds
    from .fusion.run.calibration import Calibration, GeneralSide
    from .fusion.run.diff import diff
    from .fusion.run.settings import Settings
    from .fusion.run.untie import untie
    from .hessian import calibrate
    from .hessian.store.diagonal import DiagonalHessian
    from .learn.weights import learn_weights
    from .repairing import RepairCallback
    from .training.settings import AdapterMethod, Schedule
    from .training.train import train_adapter as train

_PLACES = {  # of public names that are no methods
    "AdapterMethod": ".training.settings",
    "SideBySide": ".evaluate.answers",
    "Benchmark": ".evaluate.benchmark",
    "Bounds": ".fusion.run.bounds",
    "Calibration": ".fusion.run.calibration",
    "Checkpoint": ".fusion.checkpoint",
    "Curvature": ".fusion.arithmetic.curvature",
    "DiagonalHessian": ".hessian.store.diagonal",
    "GeneralSide": ".fusion.run.calibration",
    "Judgement": ".evaluate.release",
    "Manifest": ".fusion.record.manifest",
    "Policies": ".fusion.plan.plan",
    "RepairCallback": ".repairing",
    "Protection": ".fusion.arithmetic.two_sided",
    "Repaired": ".evaluate.repair",
    "Schedule": ".training.settings",
    "Scoring": ".evaluate.options",
    "SculptError": ".fusion.errors",
    "Selection": ".fusion.plan.plan",
    "Settings": ".fusion.run.settings",
    "SuiteScores": ".evaluate.evaluate",
    "Sweep": ".evaluate.points",
    "adapter_density": ".fusion.lora.density",
    "apply": ".fusion.run.apply",
    "apply_patch": ".api",
    "attest": ".fusion.record.signing",
    "benchmark": ".evaluate.benchmark",
    "bound": ".api",
    "calibrate": ".hessian",
    "check_loads": ".api",
    "combine_adapters": ".fusion.lora.combine",
    "compare": ".evaluate.answers",
    "diff": ".fusion.run.diff",
    "extract_adapter": ".fusion.lora.extract",
    "flips": ".evaluate.flips",
    "fuse": ".api",
    "gate": ".evaluate.release",
    "learn_weights": ".learn.weights",
    "load": ".api",
    "merge": ".api",
    "method_named": ".fusion.methods.named",
    "moved_from": ".evaluate.against",
    "open_checkpoint": ".fusion.checkpoint",
    "pack": ".api",
    "prune_adapter": ".fusion.lora.prune",
    "read_suite": ".evaluate.suite",
    "repair": ".evaluate.repair",
    "report": ".evaluate.report",
    "state_dict": ".api",
    "push": ".fusion.places.push",
    "streaming": ".fusion.places.settings",
    "sweep": ".evaluate.sweeping",
    "sweep_training": ".evaluate.training_sweep",
    "train": ".training.train:train_adapter",
    "unfinished": ".fusion.checkpoint.output.status",
    "untie": ".fusion.run.untie",
    "verify": ".fusion.record.verify",
    "write_suite": ".evaluate.starter",
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
    if name == "evaluate":  # the room is called as its function is
        return import_module(".evaluate", __name__)
    if name == "__version__":
        return import_module("importlib.metadata").version("checkpoint-sculpt")
    if name in _PLACES:
        place, _, own = _PLACES[name].partition(":")
        return getattr(_imported(place), own or name)
    if name == "__all__" or name[:1].isupper():
        methods = {found.__name__: found for found in import_module(".fusion.methods", __name__).METHODS.values()}
        if name == "__all__":
            return sorted([*_PLACES, "evaluate", *methods])
        if name in methods:
            return methods[name]
    raise AttributeError(f"module 'sculpt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])
