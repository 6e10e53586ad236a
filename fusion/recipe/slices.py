"""Groups of tensors for an output of which every layer is made of layers that the recipe names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint import Source
from ..errors import MethodError
from ..methods import Method
from ..names import Renaming, align
from ..plan.layers import comes_after, place_of, stack_of
from ..plan.matching import Match, Matching, make_match, shapes_of
from .recipe import ModelEntry, ModelName, Recipe, Slice


@dataclass(frozen=True, kw_only=True)
class Sliced:
    """What slices are made of.

    Attributes:
        models: In the plan's order; one that a slice names twice is there twice.
        method_of: Returns the method of an output tensor.
        layers: From which layer of the model that gives the configuration each output layer comes.
    """

    models: tuple[Source, ...]
    matching: Matching
    method_of: Callable[[Match], Method]
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


def match_slices(recipe: Recipe, opened: Mapping[ModelName, Source]) -> Sliced:
    """Return the matches of a recipe with slices.

    Tensors outside the layers come from the models of the first slice, those after them (the last norm, the output's
    vocabulary) from the models of the last.

    Raises:
        MethodError: A model's layers are not to be told apart, or slices ask for layers that there are not.
    """
    stack = {name: stack_of(checkpoint.tensors, checkpoint.config) for name, checkpoint in opened.items()}
    for name, found in stack.items():
        if found is None:
            raise MethodError(f"`layer_range` is ambiguous in `{name}`, which has several stacks of layers")
    counts = {name: found[1] for name, found in stack.items() if found is not None}
    prefixes = {name: found[0] for name, found in stack.items() if found is not None}
    order: list[ModelName] = list(dict.fromkeys([*([recipe.base] if recipe.base else []), *recipe.named_models()]))
    pieces = [(piece, _seats(piece, piece.base or recipe.base, order)) for piece in recipe.slices]
    builder = _Builder(recipe=recipe, opened=opened, order=order, prefixes=prefixes)
    builder.add_outside(*pieces[0], after=False)
    layers: list[int] = []
    for piece, seats in pieces:
        length = _length(seats, counts)
        for offset in range(length):
            t = offset / (length - 1) if length > 1 else 1.0
            taken = [(seat.source.layers or (0, length))[0] + offset for seat in seats]
            builder.add_layer(piece, seats, taken, len(layers), t)
            layers.append(taken[0])
    builder.add_outside(*pieces[-1], after=True)
    return Sliced(
        models=builder.models,
        matching=Matching(matches=tuple(builder.matches), renamings=tuple(dict.fromkeys(builder.renamings))),
        method_of=builder.method_of,
        layers=tuple(layers),
    )


class _Builder:
    """Collects the matches, and what each match's method is made of."""

    def __init__(
        self,
        recipe: Recipe,
        opened: Mapping[ModelName, Source],
        order: Sequence[ModelName],
        prefixes: Mapping[ModelName, str],
    ) -> None:
        self.models = tuple(opened[name] for name in order)
        self.matches: list[Match] = []
        self.renamings: list[Renaming] = []
        self._recipe = recipe
        self._prefixes = [prefixes[name] for name in order]
        self._made_of: dict[str, tuple[Slice, Sequence[_Seat], float]] = {}

    def add_layer(self, piece: Slice, seats: Sequence[_Seat], layers: Sequence[int], number: int, t: float) -> None:
        """Add the tensors of one layer of the output; `layers` are those of the seats that it is made of."""
        rests = [
            {
                place.rest: name
                for name in self.models[seat.index].tensors
                if (place := place_of(name)) and (place.prefix, place.layer) == (self._prefixes[seat.index], layer)
            }
            for seat, layer in zip(seats, layers, strict=True)
        ]
        for rest in dict.fromkeys(rest for names in rests for rest in names):
            owns = [names.get(rest) for names in rests]
            self._add(f"{self._prefixes[0]}{number}{rest}", (piece, seats, t), owns)

    def add_outside(self, piece: Slice, seats: Sequence[_Seat], *, after: bool) -> None:
        """Add the tensors outside the layers that come before these or after them."""
        lead, *others = (self._outside(seat.index) for seat in seats)
        alignments = [align(lead, other) for other in others]
        output = {theirs: ours for ours, theirs in align(self._outside(0), lead).pairs.items()}
        self.renamings += [rule for alignment in alignments for rule in alignment.renamings]
        matched = [set(alignment.pairs.values()) for alignment in alignments]
        left = [other.keys() - used for other, used in zip(others, matched, strict=True)]
        extra = {name: None for other, own in zip(others, left, strict=True) for name in other if name in own}
        rows = [(name, [name, *(alignment.pairs.get(name) for alignment in alignments)]) for name in lead]
        rows += [(name, [None, *(name if name in own else None for own in left)]) for name in extra]
        for name, owns in rows:
            if comes_after(name) == after:
                self._add(output.get(name, name), (piece, seats, 0.0), owns)

    def _outside(self, index: int) -> dict[str, tuple[int, ...]]:
        places = {name: place_of(name) for name in self.models[index].tensors}
        shapes = shapes_of(self.models[index])
        prefix = self._prefixes[index]
        return {name: shapes[name] for name, place in places.items() if place is None or place.prefix != prefix}

    def _add(self, name: str, made_of: tuple[Slice, Sequence[_Seat], float], owns: Sequence[str | None]) -> None:
        indexes = [seat.index for seat in made_of[1]]
        self.matches.append(make_match(name, name, dict(zip(indexes, owns, strict=True)), self.models))
        self._made_of[name] = made_of

    def method_of(self, match: Match) -> Method:
        """Return the method of an output tensor."""
        piece, seats, t = self._made_of[match.name]
        found = self._recipe.method_for(
            match.name,
            t,
            sources=[seat.source for seat in seats],
            names=match.names,
            piece=piece.settings,
            baseless=(piece.base or self._recipe.base) is None,
        )
        return found.for_models(self._recipe.run.num_seen(found, len(seats) - 1))
