"""A plan in which every layer of the output is made of layers that the recipe names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..checkpoint import Source, TensorInfo
from ..dtypes import BY_TORCH_NAME
from ..errors import MethodError, MismatchError
from ..methods import Method
from ..plan.plan import Plan
from ..plan.step import Step
from ..run.fuse import Settings
from .layers import comes_after, place_of, stack_of
from .recipe import ModelEntry, ModelName, Recipe, Slice


@dataclass(frozen=True, kw_only=True)
class SlicePlan:
    """A plan, and from which layer of the model that gives the configuration each output layer comes.

    Attributes:
        layers: Empty where whole models are merged.
    """

    plan: Plan
    layers: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Seat:
    """One input of a slice: which checkpoint of the plan it is, 0 the plan's base."""

    index: int
    source: ModelEntry


def _seats(piece: Slice, base: ModelName | None, order: list[ModelName]) -> list[_Seat]:
    """Give each input of a slice a place in the plan's order; a model that is named twice has two."""
    taken: dict[ModelName, int] = {}
    sources = list(piece.sources)
    if base is not None:
        own = next((source for source in sources if source.model == base), None)
        others = [source for source in sources if source is not own]
        sources = [own or ModelEntry(model=base, layers=piece.sources[0].layers), *others]
    seats = []
    for source in sources:
        number = taken.get(source.model, 0)
        taken[source.model] = number + 1
        places = [k for k, name in enumerate(order) if name == source.model]
        while len(places) <= number:
            order.append(source.model)
            places.append(len(order) - 1)
        seats.append(_Seat(index=places[number], source=source))
    seats.sort(key=lambda seat: seat.index)
    if base is not None and seats[0].source.model != base:
        raise MethodError(f"`{base}`, the base of a slice, is one of the merged models of another slice")
    return seats


def _length(seats: Sequence[_Seat], counts: Mapping[ModelName, int]) -> int:
    """Return the number of layers of a slice.

    Raises:
        MethodError: Its inputs have different numbers, or a model has fewer.
    """
    found = set()
    for seat in seats:
        first, last = seat.source.layers or (0, counts[seat.source.model])
        if last > counts[seat.source.model]:
            raise MethodError(
                f"`{seat.source.model}` has {counts[seat.source.model]} layers, and {first} to {last} are asked for"
            )
        found.add(last - first)
    if len(found) != 1:
        raise MethodError(f"the inputs of a slice have {' and '.join(map(str, sorted(found)))} layers")
    return found.pop()


def plan_slices(recipe: Recipe, opened: Mapping[ModelName, Source], settings: Settings) -> SlicePlan:
    """Return the plan of a recipe with slices.

    Tensors outside the layers come from the models of the first slice, those after them (the last norm, the output's
    vocabulary) from the models of the last.

    Raises:
        MethodError: A model's layers are not to be told apart, or slices ask for layers that there are not.
        MismatchError: Layers that are to be merged hold different tensors.
    """
    stack = {name: stack_of(checkpoint.tensors, checkpoint.config) for name, checkpoint in opened.items()}
    for name, found in stack.items():
        if found is None:
            raise MethodError(
                f"which layers `layer_range` counts is not plain in `{name}`: it has several stacks of layers"
            )
    counts = {name: found[1] for name, found in stack.items() if found is not None}
    prefixes = {name: found[0] for name, found in stack.items() if found is not None}
    order: list[ModelName] = list(dict.fromkeys([*([recipe.base] if recipe.base else []), *recipe.named_models()]))
    pieces = [(piece, _seats(piece, piece.base or recipe.base, order)) for piece in recipe.slices]
    builder = _Builder(recipe=recipe, opened=opened, order=order, settings=settings)
    steps: list[Step] = []
    layers: list[int] = []
    first, last = pieces[0], pieces[-1]
    for name in _outside(opened, first[1], prefixes):
        if not comes_after(name):
            steps.append(builder.step(name, first, [name] * len(first[1]), 0.0))
    for piece, seats in pieces:
        length = _length(seats, counts)
        lead = seats[0].source
        for offset in range(length):
            number, t = len(layers), offset / (length - 1) if length > 1 else 1.0
            start = (lead.layers or (0, length))[0] + offset
            layers.append(start)
            for name in opened[lead.model].tensors:
                place = place_of(name)
                if place is None or place.prefix != prefixes[lead.model] or place.layer != start:
                    continue
                names = [
                    f"{prefixes[seat.source.model]}{(seat.source.layers or (0, length))[0] + offset}{place.rest}"
                    for seat in seats
                ]
                steps.append(builder.step(place.name(number), (piece, seats), names, t))
    for name in _outside(opened, last[1], prefixes):
        if comes_after(name):
            steps.append(builder.step(name, last, [name] * len(last[1]), 0.0))
    checkpoints = [opened[name] for name in order]
    plan = Plan(base=checkpoints[0], tuned=tuple(checkpoints[1:]), steps=tuple(steps), renamings=(), notes=())
    plan = replace(plan, steps=tuple(replace(s, tuned=_padded(s.tuned, len(order) - 1)) for s in plan.steps))
    return SlicePlan(plan=plan, layers=tuple(layers))


def _padded(infos: tuple[TensorInfo | None, ...], length: int) -> tuple[TensorInfo | None, ...]:
    return (*infos, *[None] * (length - len(infos)))


def _outside(
    opened: Mapping[ModelName, Source], seats: Sequence[_Seat], prefixes: Mapping[ModelName, str]
) -> list[str]:
    lead = seats[0].source.model
    places = {name: place_of(name) for name in opened[lead].tensors}
    return [name for name, place in places.items() if place is None or place.prefix != prefixes[lead]]


@dataclass(frozen=True, kw_only=True)
class _Builder:
    """What every step of the plan is built from."""

    recipe: Recipe
    opened: Mapping[ModelName, Source]
    order: Sequence[ModelName]
    settings: Settings

    def step(self, name: str, made_of: tuple[Slice, Sequence[_Seat]], names: Sequence[str], t: float) -> Step:
        """Return the step of one output tensor."""
        piece, seats = made_of
        infos: list[TensorInfo | None] = [None] * len(self.order)
        for seat, own in zip(seats, names, strict=True):
            info = self.opened[seat.source.model].tensors.get(own)
            if info is None:
                raise MismatchError(own, f"`{own}` is missing in `{seat.source.model}`")
            infos[seat.index] = info
        found = [info for info in infos if info is not None]
        if any(info.shape != found[0].shape for info in found):
            raise MismatchError(name, f"`{name}` would be made of tensors of different shapes")
        fusible = all(info.kind.fusible for info in found)
        method = self._method(name, piece, seats, names, t)
        copied = not fusible or (len(found) == 1 and method.identity == "base")
        cast = BY_TORCH_NAME.get(self.settings.dtype or "")
        dtype = cast.code if cast and found[0].kind.fusible else found[0].dtype
        return Step(
            name=name,
            action="copy" if copied else "fuse",
            why="taken as it is" if copied else "selected",
            dtype=dtype,
            shape=found[0].shape,
            base=infos[0],
            tuned=tuple(infos[1:]),
            source="base" if infos[0] is not None else "tuned",
            num_fused=0 if copied else found[0].num_elements,
            key=name,
            curvature=name,
            method=method,
        )

    def _method(self, name: str, piece: Slice, seats: Sequence[_Seat], names: Sequence[str], t: float) -> Method:
        baseless = (piece.base or self.recipe.base) is None
        sources = [seat.source for seat in seats]

        def of(counted: Sequence[ModelEntry], own: Sequence[str]) -> Method:
            return self.recipe.method_for(
                name, t, sources=counted, names=own, piece=piece.settings, origin_is_zero=baseless
            )

        probe = of(sources[:1], names[:1])
        counts_base = probe.counts_base or self.recipe.method.max_models == 0
        found = of(sources, names) if counts_base else of(sources[1:], names[1:])
        return found.for_models(len(seats) - 1)
