"""One file, one method; the file's name is the method's name in recipes and on the command line."""

from .adadare import AdaDare
from .dare import Dare
from .dare_ties import DareTies
from .karcher import Karcher
from .linear import Linear
from .method import Method
from .model_stock import ModelStock
from .multislerp import MultiSlerp
from .nearswap import NearSwap
from .nuslerp import NuSlerp
from .passthrough import Passthrough
from .slerp import Slerp
from .tailor import Tailor
from .task_arithmetic import TaskArithmetic

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        AdaDare,
        Dare,
        DareTies,
        Karcher,
        Linear,
        ModelStock,
        MultiSlerp,
        NearSwap,
        NuSlerp,
        Passthrough,
        Slerp,
        Tailor,
        TaskArithmetic,
    )
}

__all__ = [
    "METHODS",
    "AdaDare",
    "Dare",
    "DareTies",
    "Karcher",
    "Linear",
    "Method",
    "ModelStock",
    "MultiSlerp",
    "NearSwap",
    "NuSlerp",
    "Passthrough",
    "Slerp",
    "Tailor",
    "TaskArithmetic",
]
