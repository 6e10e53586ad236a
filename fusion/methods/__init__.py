"""One file, one method; the file's name is the method's name in recipes and on the command line."""

from .adadare import AdaDare
from .arcee_fusion import ArceeFusion
from .breadcrumbs import Breadcrumbs
from .breadcrumbs_ties import BreadcrumbsTies
from .dare import Dare
from .dare_ties import DareTies
from .della import Della
from .della_linear import DellaLinear
from .karcher import Karcher
from .linear import Linear
from .magnitude import Magnitude
from .method import Method
from .model_stock import ModelStock
from .multislerp import MultiSlerp
from .nearswap import NearSwap
from .nuslerp import NuSlerp
from .passthrough import Passthrough
from .saliency import Saliency
from .sce import Sce
from .slerp import Slerp
from .tailor import Tailor
from .task_arithmetic import TaskArithmetic
from .ties import Ties

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
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
}

__all__ = [
    "METHODS",
    "AdaDare",
    "ArceeFusion",
    "Breadcrumbs",
    "BreadcrumbsTies",
    "Dare",
    "DareTies",
    "Della",
    "DellaLinear",
    "Karcher",
    "Linear",
    "Magnitude",
    "Method",
    "ModelStock",
    "MultiSlerp",
    "NearSwap",
    "NuSlerp",
    "Passthrough",
    "Saliency",
    "Sce",
    "Slerp",
    "Tailor",
    "TaskArithmetic",
    "Ties",
]
