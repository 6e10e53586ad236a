"""Triton kernels for devices: the same bits as the definitions, and one launch for a pass or map over a tile."""

from ...native import TAKEN_FOR
from ..stand_in import StandIns
from . import adadare, dare, task_arithmetic

MODULES = (adadare, dare, task_arithmetic)
KERNELS = StandIns((kernel for module in MODULES for kernel in module.STAND_INS), TAKEN_FOR)
