"""Methods to compare with that are no commands of `sculpt`: one file each, behind the interface that all methods have.

`python -m sculpt.benchmarks.forgetting.rivals NAME BASE TUNED … -o OUT` runs one; `measure.py` measures what they want.
"""

from sculpt.fusion.methods import Fisher, Method

from .ace import Ace
from .aim import Aim
from .cgm import Cgm
from .dg_hard import DgHard
from .null_space import NullSpace
from .wudi_adam import WudiAdam

RIVALS: dict[str, type[Method]] = {found.name: found for found in (Ace, Aim, Cgm, DgHard, NullSpace, WudiAdam)}
RIVALS["fisher-by-gradients"] = Fisher  # as its authors have it, told E[g²] in place of E[x²]
