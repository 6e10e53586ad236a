"""Which tensors each of several processes works on: runs of the files, of about as many bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..launch import Launch
from ..methods import Method
from ..names import block_of
from ..plan.step import Step


def together(steps: Iterable[Step], method: Method) -> Iterator[list[Step]]:
    """Yield the steps whose tensors share a reduction: each alone, then by the scope of its method.

    Args:
        method: Of steps that have none of their own.
    """
    shared: dict[tuple[Method, str], list[Step]] = {}
    for step in steps:
        own = step.method or method
        if own.scope == "tensor" or step.action != "fuse":
            yield [step]
        else:
            shared.setdefault((own, block_of(step.name) if own.scope == "block" else ""), []).append(step)
    yield from shared.values()


def share_of(steps: Sequence[Step], method: Method, launch: Launch) -> list[Step]:
    """Return the steps of this process; every process asks with the same steps."""
    if launch.count == 1:
        return list(steps)
    groups = list(together(steps, method))
    sizes = [sum(step.bytes_read + step.nbytes for step in group) for group in groups]
    total, before, own = max(1, sum(sizes)), 0, []
    for group, size in zip(groups, sizes, strict=True):
        if min(launch.count - 1, launch.count * (2 * before + size) // (2 * total)) == launch.rank:
            own += group
        before += size
    return own
