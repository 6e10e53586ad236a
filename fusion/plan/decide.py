"""What becomes of one tensor: fused, copied, left out or refused. Whoever asks, and for any number of models."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeGuard

from ..checkpoint import Source, TensorInfo
from ..checkpoint.foreign import GATHER
from ..errors import CheckpointError, MismatchError
from ..methods import Method
from ..names import OUTPUT_MODULES, config_values, is_constant, is_pooler, module_of, selects
from .matching import Match, seen_as
from .options import Side
from .step import WAYS, Request, Step

KEPT = "kept by a rule"


def decide(
    match: Match, models: Sequence[Source], request: Request, method_of: Callable[[Match], Method]
) -> Step | None:
    """Return the step of one output tensor; None if the output has no place for it.

    Args:
        method_of: Asked only where the method has a say.

    Raises:
        MismatchError: The models disagree on the tensor, and no policy allows it.
        CheckpointError: A tensor has a dtype that cannot be read.
    """
    return _Decision(match, models, request, method_of).step()


@dataclass(frozen=True)
class _Decision:
    match: Match
    models: Sequence[Source]
    request: Request
    method_of: Callable[[Match], Method]
    without: frozenset[int] = frozenset()  # models that have no part in the tensor, by a policy

    def step(self) -> Step | None:
        """Go through all that can be in the way of fusing, then fuse."""
        match, request = self.match, self.request
        lead, *others = match.parts
        base, *tuned = match.parts.values()
        if base is not None and _agree(tuned, base) and not is_left_to_the_class(match) and not match.tied:
            return self._fused_or_copied(base, tuned, resized=False)
        _refuse_unreadable(match, self.models)
        if is_left_to_the_class(match):
            home = self._home
            if match.parts[home] is None:
                return None
            return self._made("copy", "left to the model's class", "base" if home == lead else "tuned")
        if base is None:
            return self._extra()
        missing = [index for index in others if match.parts[index] is None]
        if missing:
            policy = request.policies.on_missing
            self._allow(policy, "on_missing", f"is in the base and missing in {self._at(missing[0])}")
            if policy == "drop" and (self._home in missing or len(missing) == len(others)):
                return None
            return self._of_the_others(missing, "missing in")
        if self._is_tied_in_output():
            return None
        found = [info for info in tuned if info is not None]
        differing = [k for k, info in zip(others, found, strict=True) if info.shape != base.shape]
        resized = bool(differing) and _is_resized(base, found, [self.models[index] for index in match.parts])
        # Of two models the common rows are fused, as long as none of the other's new ones is lost.
        lost = resized and self._home == lead and found[0].shape[0] > base.shape[0]
        if differing and (len(others) > 1 or lost or not resized):
            self._refuse_empty(found)
            first, policy = found[others.index(differing[0])], request.policies.on_mismatch
            told = f"is {_text(base.shape)} in the base and {_text(first.shape)} in {self._at(differing[0])}"
            self._allow(policy, "vocabulary" if resized else "on_mismatch", told)
            if policy == "take-tuned":
                return self._made("copy", f"shape differs in {self.models[differing[0]].ref}", differing[0])
            if len(others) > 1 or not resized:
                return self._of_the_others(differing, "shape differs in")
        for index, info in zip(others, found, strict=True):
            if info.stored != base.stored:
                told = f"is {base.kind.torch} in the base and {info.kind.torch} in {self._at(index)}"
                if not (info.kind.fusible and base.kind.fusible):
                    raise MismatchError(match.key, f"`{base.name}` {told}", hint="only float dtypes are converted")
                self._allow(request.policies.on_dtype, "on_dtype", told)
        return self._fused_or_copied(base, found, resized=resized)

    def _refuse_empty(self, found: Sequence[TensorInfo]) -> None:
        """Refuse placeholders: no policy makes a tensor of one."""
        for index, info in zip([*self.match.parts][1:], found, strict=True):
            if not info.num_elements:
                told = f"`{info.name}` is empty in {self._at(index)}: ZeRO-3 saves such tensors unless it gathers them"
                raise MismatchError(info.name, told, hint=GATHER)

    def _of_the_others(self, left: Collection[int], why: str) -> Step | None:
        """Decide for the models whose tensors fit; the base's is kept where there are none, or too few to merge."""
        told = f"{why} {', '.join(str(self.models[index].ref) for index in left)}"
        rest = {index: info for index, info in self.match.parts.items() if index not in left}
        places = [place for place, index in enumerate(self.match.parts) if index in rest]
        if len(places) == 1 or len(places) <= self.method_of(self.match).model_range[0]:
            return self._made("copy", told)
        full, method_of = self.match, self.method_of
        match = full._replace(parts=rest, tied=full.tied.difference(left))
        step = replace(
            self,
            match=match,
            method_of=lambda _: method_of(full).among(places),
            without=self.without.union(left),
        ).step()
        return step and step._replace(why=f"{step.why}; {told}")

    def _fused_or_copied(self, base: TensorInfo, tuned: Sequence[TensorInfo], *, resized: bool) -> Step:
        """Decide where the models agree: by selection, rules and method."""
        match, selection = self.match, self.request.selection
        # Deltas of an adapter that leaves the tensor alone are zero; an average of the models may still scale it.
        if tuned and all(info is base for info in tuned) and all(self.models[k].base for k in [*match.parts][1:]):
            method = self.method_of(match)
            if not method.counts_base:
                return self._made("copy", "no adapter changes it")
        if not base.kind.fusible:
            identity = self.method_of(match).identity if tuned else "base"
            return self._made("copy", f"{base.kind.torch} is not fused", identity or "tuned")
        if not selection.covers(match.key):
            return self._made("copy", "not selected", selection.rest)
        for globs, source in self.request.keep:
            if selects(globs, match.name):
                return self._made("copy", KEPT, source)
        method = self.method_of(match)
        if not tuned and (not method.counts_base or method.identity == "base"):
            return self._made("copy", "taken as it is", method=method)
        if resized:
            rows, more = sorted((base.shape[0], tuned[0].shape[0]))
            longer: Side = "base" if rows < base.shape[0] else "tuned"
            home: Side = "base" if self._home == next(iter(match.parts)) else "tuned"
            whose = "of the base" if longer == "base" else "of the tuned model"
            why = f"{rows} common rows; {more - rows} more {whose} {'kept' if home == longer else 'left out'}"
            return self._made("fuse", why, home, rows * (base.num_elements // base.shape[0]), method)
        why = f"the base ties it to {base.name}" if next(iter(match.parts)) in match.tied else "selected"
        return self._made("fuse", why, method=method)

    def _extra(self) -> Step | None:
        """Decide on a tensor that the base has not."""
        first = next(index for index, info in self.match.parts.items() if info is not None)
        policy = self.request.policies.on_extra
        # Those of further models have no place in the first one's architecture.
        has_place = first == [*self.match.parts][1]
        self._allow(
            policy,
            "on_extra" if has_place else "on_further_extra",
            f"is in {self._at(first)} and missing in the base",
            None if has_place else f"named first of the tuned models, {self._at(first)} can have a place for it",
        )
        if policy == "take-tuned" and has_place:
            return self._made("copy", "only in the tuned model", "tuned")
        return None

    def _made(
        self,
        action: Literal["fuse", "copy"],
        why: str,
        source: Side | int = "base",
        num_fused: int | None = None,
        method: Method | None = None,
    ) -> Step:
        parts = self.match.parts
        lead = next(iter(parts))
        # Where one side has nothing to copy, the other has.
        origin = source if isinstance(source, int) else lead
        if source == "tuned" or (source == "base" and parts[lead] is None):
            origin = next((index for index, info in parts.items() if index != lead and info is not None), lead)
        info, base = parts[origin], parts[lead]
        assert info is not None
        if num_fused is None:
            num_fused = info.num_elements if action == "fuse" else 0
        # Of two floats the base's is stored, whichever side is copied.
        floats = base is not None and base.kind.fusible and info.kind.fusible
        kept = base if base is not None and (floats or action == "fuse") else info
        infos = [parts.get(index) for index in range(len(self.models))]
        return Step(
            name=self.match.name,
            action=action,
            why=why,
            dtype=self.request.stored_as(kept),
            shape=info.shape,
            base=infos[0],
            tuned=tuple(infos[1:]),
            origin=origin,
            num_fused=num_fused,
            key=self.match.key,
            seen=self._seen(infos),
            method=method,
        )

    def _seen(self, infos: Sequence[TensorInfo | None]) -> tuple[str | None, ...] | None:
        """Return what calibration of each model calls its tensor, where that is another name; else None."""
        if not any(info is not None and module_of(info.name) in OUTPUT_MODULES for info in infos):
            return None
        pairs = zip(infos, self.models, strict=True)
        return tuple([None if info is None else seen_as(info, model) for info, model in pairs])

    @property
    def _home(self) -> int:
        """The model whose configuration the output has, as far as this tensor is concerned."""
        lead, *others = sorted({*self.match.parts} | self.without)
        return others[0] if others and self.request.config_from == "tuned" else lead

    def _is_tied_in_output(self) -> bool:
        """Return whether the output's configuration ties the tensor to another: one decision, under its name."""
        if not self.match.tied:
            return False
        if self._home in self.match.tied:
            return True
        ties = True in config_values(self.models[self._home].config, "tie_word_embeddings")
        return ties and next(iter(self.match.parts)) in self.match.tied

    def _at(self, index: int) -> str:
        return f"`{self.models[index].ref}`"

    def _allow(self, policy: str, option: str, told: str, hint: str | None = None) -> None:
        """Raise what is wrong, unless a policy allows it."""
        if policy == "error":
            lead, *_ = self.match.parts
            info = next(info for info in self.match.parts.values() if info is not None)
            name = self.match.key if lead in self.match.tied else info.name
            raise MismatchError(name, f"`{name}` {told}", hint=hint, ways=WAYS[option])


def is_left_to_the_class(match: Match) -> bool:
    """Return whether the side whose configuration is taken has the last word: whether the tensor is there or not.

    Constant buffers are never fused; poolers are a head's, and may be on one side alone.
    """
    info = next(info for info in match.parts.values() if info is not None)
    if len(match.parts) > 1 and is_constant(info.name, info.shape):
        return True
    return is_pooler(info.name) and any(part is None for part in match.parts.values())


def _agree(tuned: Sequence[TensorInfo | None], base: TensorInfo) -> TypeGuard[Sequence[TensorInfo]]:
    """Return whether every model has a tensor that can be fused, of the base's shape and dtype, as most are."""
    if not base.kind.fusible:
        return False
    for info in tuned:
        if info is None or info.shape != base.shape or info.dtype != base.dtype or info.stored != base.stored:
            return False
    return True


def _refuse_unreadable(match: Match, models: Sequence[Source]) -> None:
    """Refuse what no arithmetic is offered for; what stands alone is copied, by the byte if NumPy lacks the dtype."""
    for index, info in match.parts.items():
        if info is None or info.kind.fusible:
            continue
        kind, own = info.kind, models[index]
        computed = len(match.parts) > 1 and (kind.numpy is None or info.dtype.startswith("F8") or info.dtype == "C64")
        if computed or (kind.numpy is None and own.stored(info.name) is None):
            raise CheckpointError(
                f"`{info.name}` in `{own.ref}` is {kind.torch}, which sculpt cannot fuse yet",
                hint="take the unquantised checkpoint, or save one with the library that wrote this",
            )


def _is_resized(base: TensorInfo, tuned: Sequence[TensorInfo], models: Sequence[Source]) -> bool:
    """Return whether only the number of vocabulary rows differs, and each model's config confirms its own."""
    infos = (base, *tuned)
    if not base.shape or len({info.shape[1:] for info in infos}) > 1 or len({len(info.shape) for info in infos}) > 1:
        return False
    sizes = [config_values(model.config, "vocab_size") for model in models]
    return all(info.shape[0] in own for info, own in zip(infos, sizes, strict=True))


def _text(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
