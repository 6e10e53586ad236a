"""What a run takes of memory: billed from headers before it starts, and kept to while it is under way.

Tiles of element and row transforms take the same at any moment: as many buffers and as much arithmetic as there are
threads. What a matrix transform works on is there whole, so that only as many tensors are let in as the budget holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from math import prod

from ..arithmetic.group import Group
from ..arithmetic.two_sided import Protection
from ..checkpoint.output.encoding import Encoding
from ..dtypes import DTYPES
from ..errors import MemoryBudgetError
from ..methods import Method
from ..plan.step import Step
from .backend import SPARE_BUFFERS, Backend
from .mixer import mixing_bytes, solving_bytes
from .protector import joins

PROCESS_BYTES = 75_000_000  # the interpreter with NumPy and kernels, measured
TORCH_BYTES = 230_000_000  # what importing torch adds, measured
LET_IN_BYTES = 2 << 30  # of tensors worked on whole, where no budget was given and one alone does not take more
MODEL_BYTES = 16  # an element's of each further model: its stored and its decoded form, its delta and a mask
TOGETHER_BYTES = 1 << 20  # small tensors that one thread fuses before another's come before them in the file
STRIP_BYTES = 32  # an element's while it is encoded: as floats, scaled, rounded, and what it was before
FACTOR_BYTES = 28  # an input pair's of the factor of an inverse Hessian, while it is made
WHOLE_BYTES = 5  # an element's of what a matrix transform made: a float32 and a mark


@dataclass(frozen=True, kw_only=True)
class Bill:
    """Private bytes of a run.

    Attributes:
        process: The interpreter and its libraries.
        tiles: Buffers that tiles are computed into and written from, and the arithmetic on all threads.
        held: Copies of tiles that were written before their turn to be hashed came.
        solving: Of the one tensor whose deltas are being mixed by matrices.
        whole: Of tensors that are worked on whole, all that may be under way at once.
        budget: Up to what such tensors are let in.
    """

    process: int
    tiles: int
    held: int
    solving: int
    whole: int
    budget: int

    @property
    def total(self) -> int:
        """What the process takes at its height, at most."""
        return self.process + self.tiles + self.held + self.solving + self.whole

    @property
    def expected(self) -> int:
        """What it takes as a rule: half of the tiles that might wait for their turn do."""
        return self.total - self.held // 2


def _kind(step: Step) -> Hashable:
    """Return all of a step that its bytes depend on."""
    return step.action, step.shape, step.num_fused, step.dtype, len(step.tuned), id(step.method)


def _kinds(steps: Sequence[Step]) -> dict[Hashable, Step]:
    """Return one step of each kind: a model of many experts has thousands that take the same."""
    return {_kind(step): step for step in steps}


def _inputs(step: Step) -> int:
    """Return the most inputs that a matrix of a tensor can have; its statistics are not known yet."""
    return min(prod(step.shape[1:]), max(step.shape, default=1))


def _is_mixed(step: Step, protection: Protection | None) -> bool:
    """Return whether a tensor's deltas may be mixed by matrices."""
    return protection is not None and protection.needs_gram and step.action == "fuse" and len(step.shape) > 1


def whole_bytes(step: Step, method: Method, protection: Protection | None) -> int:
    """Return what is there of one tensor all the while that it is under way; 0 where tiles of it will do."""
    total, num_models = 0, len(step.tuned)
    if protection is not None and method.scope == "tensor" and _is_mixed(step, protection):
        total += mixing_bytes(_inputs(step), num_models, protection)
    if step.action == "fuse" and method.region(Group(name=step.name, shape=step.shape)) == "matrix":
        each = method.bytes_per_element + MODEL_BYTES * (num_models - 1) + WHOLE_BYTES
        of_pair = method.bytes_per_input_pair + method.bytes_per_model_pair * num_models
        total += each * step.num_fused + (of_pair * _inputs(step) ** 2 if len(step.shape) > 1 else 0)
    return total


def _solving(step: Step, method: Method, protection: Protection | None) -> int:
    """Return what a tensor takes while its deltas are being mixed by matrices, which one at a time are."""
    if protection is None or not _is_mixed(step, protection):
        return 0
    num_models = len(step.tuned)
    joined, by_tensor = joins(method, num_models), method.scope == "tensor"
    return solving_bytes(step.num_fused, _inputs(step), num_models, protection, joined=joined, by_tensor=by_tensor)


def bill_of(
    steps: Sequence[Step],
    method: Method,
    protection: Protection | None,
    backend: Backend,
    memory: int | None,
    *,
    unlimited: Callable[[], Backend],
    loads_torch: bool,
) -> Bill:
    """Return what a run takes.

    Args:
        memory: The budget of what is worked on at once, or None.
        unlimited: Gives the backend of a run without a budget.

    Raises:
        MemoryBudgetError: A tensor takes more than the budget.
    """
    tiles, held = _tile_bytes(steps, method, backend)
    kinds = _kinds(steps)
    solvings = {kind: _solving(step, step.method or method, protection) for kind, step in kinds.items()}
    by_kind = {kind: whole_bytes(step, step.method or method, protection) for kind, step in kinds.items()}
    solving = max(solvings.values(), default=0)
    room = None if memory is None else max(0, memory - tiles - held - solving)
    wholes = {step.name: by_kind[_kind(step)] for step in steps}
    name, largest = max(wholes.items(), key=lambda found: found[1], default=("", 0))
    if room is not None and largest > room:
        shape = next(step.shape for step in steps if step.name == name)
        whole = largest + solving
        needed, enough = whole + tiles + held, whole + sum(_tile_bytes(steps, method, unlimited()))
        raise MemoryBudgetError(name, shape, method.title, needed=needed, budget=memory or 0, enough=enough)
    at_once = sum(sorted(wholes.values())[-backend.threads :])
    budget = max(largest, LET_IN_BYTES) if room is None else room
    return Bill(
        process=PROCESS_BYTES + (TORCH_BYTES if loads_torch else 0),
        tiles=tiles,
        held=held,
        solving=solving,
        whole=min(at_once, budget),
        budget=budget,
    )


def _tile_bytes(steps: Sequence[Step], method: Method, backend: Backend) -> tuple[int, int]:
    """Return what tiles take while they are computed and written, and what is held of them to be hashed in order."""
    buffer, arithmetic = 0, 0
    for step in _kinds(steps).values():
        own = step.method or method
        region = own.region(Group(name=step.name, shape=step.shape)) if step.action == "fuse" else "element"
        row = max(1, prod(step.shape[-1:])) if region == "row" else 1
        tile = min(max(backend.tile_elements, row), step.num_elements)
        buffer = max(buffer, tile * DTYPES[step.dtype].bits // 8)
        if step.action == "fuse":
            piece = min(max(backend.piece_elements, row), step.num_elements)
            each = method.bytes_per_element if region != "matrix" else Method.bytes_per_element
            arithmetic = max(arithmetic, piece * (each + MODEL_BYTES * max(0, len(step.tuned) - 1)))
    buffers = (backend.threads + SPARE_BUFFERS) * buffer
    held = min((backend.threads + SPARE_BUFFERS) * max(buffer, TOGETHER_BYTES), sum(step.nbytes for step in steps))
    return buffers + backend.threads * arithmetic, held


def encoding_bytes(encodings: Collection[Encoding], *, feedback: bool) -> int:
    """Return what a thread takes that encodes a strip of a tensor, and makes up for its errors by a matrix."""
    strips = max((encoding.strip for encoding in encodings), default=0)
    inputs = max((encoding.num_inputs for encoding in encodings), default=0) if feedback else 0
    return strips * STRIP_BYTES + inputs * inputs * FACTOR_BYTES
