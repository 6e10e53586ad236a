"""One file, one method; the file's name is the method's name in recipes and on the command line.

A line here is all that a new method needs: `METHODS`, the commands, recipes, `sculpt.__all__` and the contract test
follow from it.
"""

from .adadare import AdaDare as AdaDare
from .arcee_fusion import ArceeFusion as ArceeFusion
from .breadcrumbs import Breadcrumbs as Breadcrumbs
from .breadcrumbs_ties import BreadcrumbsTies as BreadcrumbsTies
from .dare import Dare as Dare
from .dare_ties import DareTies as DareTies
from .della import Della as Della
from .della_linear import DellaLinear as DellaLinear
from .fisher import Fisher as Fisher
from .iso_c import IsoC as IsoC
from .karcher import Karcher as Karcher
from .linear import Linear as Linear
from .lines import Lines as Lines
from .magnitude import Magnitude as Magnitude
from .method import Method as Method
from .model_stock import ModelStock as ModelStock
from .multislerp import MultiSlerp as MultiSlerp
from .nearswap import NearSwap as NearSwap
from .nuslerp import NuSlerp as NuSlerp
from .passthrough import Passthrough as Passthrough
from .regmean import RegMean as RegMean
from .saliency import Saliency as Saliency
from .sce import Sce as Sce
from .slerp import Slerp as Slerp
from .tailor import Tailor as Tailor
from .task_arithmetic import TaskArithmetic as TaskArithmetic
from .ties import Ties as Ties
from .tsv_m import TsvM as TsvM
from .two_sided import TwoSided as TwoSided
from .wudi import Wudi as Wudi

METHODS: dict[str, type[Method]] = {
    found.name: found
    for found in list(globals().values())
    if isinstance(found, type) and issubclass(found, Method) and found is not Method
}
