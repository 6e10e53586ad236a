"""Kernels: the same bits as the definitions that they stand in for, at the speed of memory.

`source` is what Numba compiles for CPUs, imported on a machine's first use of a kernel; the modules here call the
machine code. `accelerator` has Triton's for devices.
"""

from ..native import TAKEN_FOR
from . import adadare, budget, dare, merge, ranks, saliency, task_arithmetic
from .stand_in import StandIns

MODULES = (adadare, budget, dare, merge, ranks, saliency, task_arithmetic)
KERNELS = StandIns((kernel for module in MODULES for kernel in module.STAND_INS), TAKEN_FOR)
