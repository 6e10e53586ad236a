"""Which tensors of a plan are written as codes, in which form, and what the output's configuration says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..checkpoint.adapter.module_names import ModelNames
from ..checkpoint.coded.coded import Coded, Form
from ..checkpoint.coded.encode import GROUP
from ..checkpoint.output.encoding import Encoding
from ..errors import MethodError
from ..names import config_values, is_vocabulary
from .plan import Plan
from .step import Step

BLOCKS = (128, 64, 32)  # of FP8, the largest that divides what the model's linear layers have
LOADED = ("fp8", "mxfp4")  # methods of `quantization_config` that are written
EXPERTS = ("gate_up_proj", "down_proj")  # of gpt-oss: all that transformers reads as MXFP4
WAY_OUT = "`plain` writes weights that are not quantised"


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """What is written as codes.

    Attributes:
        by_name: How, by the tensor's name in the plan.
        said: `quantization_config` of the output; None where nothing is encoded.
    """

    by_name: Mapping[str, Encoding] = field(default_factory=dict)
    said: Mapping[str, Any] | None = None

    @property
    def notes(self) -> list[str]:
        """What is said of them."""
        count = len(self.by_name)
        kinds = {encoding.form.kind for encoding in self.by_name.values()}
        return [f"{count} tensor{'s' * (count > 1)} stored as {' and '.join(sorted(kinds))}"] if count else []

    def applied(self, plan: Plan) -> Plan:
        """Return the plan with tensors that are encoded in float32, so that they are rounded once."""
        steps = (step._replace(dtype="F32") if step.name in self.by_name else step for step in plan.steps)
        return replace(plan, steps=tuple(steps))


def encodings(plan: Plan, wanted: str) -> Encodings:
    """Return how the tensors of a plan are written.

    Args:
        wanted: `plain`, `fp8`, `mxfp4`, or `same` as a model of the plan has them.

    Raises:
        MethodError: Nothing could be written that transformers would load.
    """
    if wanted == "plain":
        return Encodings()
    stored = {step.name: found for step in plan.steps if (found := _stored_as(step, plan)) is not None}
    kinds = {found.form.kind for found in stored.values() if found.form is not None}
    if wanted == "same" and not kinds:
        formats = sorted({name for model in (plan.base, *plan.tuned) for name in model.decoded})
        raise _refusal(
            f"FP8 in blocks and gpt-oss' MXFP4 are written, and the models have {', '.join(formats) or 'neither'}"
        )
    if len(kinds) > 1:
        raise _refusal("tensors are FP8 and MXFP4 in one model")
    if wanted in ("same", *kinds):
        return _like_before(plan, stored)
    return _fp8(plan) if wanted == "fp8" else _mxfp4(plan)


def _stored_as(step: Step, plan: Plan) -> Coded | None:
    """Return how the base has a tensor, else the first of the tuned that does; None where all are plain."""
    for info, model in zip((step.base, *step.tuned), (plan.base, *plan.tuned), strict=True):
        found = model.coded_as(info.name) if info is not None else None
        if (
            found is not None
            and found.form is not None
            and found.info.shape == step.shape
            and found.info.name == step.name
        ):
            return found
    return None


def _like_before(plan: Plan, stored: Mapping[str, Coded]) -> Encodings:
    """Encode what a model has as codes, as it has them."""
    said = next(iter(stored.values())).said
    if said.get("quant_method") not in LOADED:
        raise _refusal(f"`config.json` calls the codes `{said.get('quant_method')}`, which is not written")
    by_name = {
        step.name: _encoding(step, found.form, found)
        for step in plan.steps
        if (found := stored.get(step.name)) is not None and found.form is not None
    }
    return Encodings(by_name=by_name, said=said)


def _fp8(plan: Plan) -> Encodings:
    """Encode the matrices of all linear layers, as transformers replaces them, but for the output's vocabulary."""
    names = ModelNames(plan.config_from)
    modules: dict[str, Step] = {}
    left: set[str] = set()
    parts = {part.tensor: (name, part.expert) for name, found in names.parameters.items() for part in found.parts}
    for step in plan.steps:
        if len(step.shape) != 2 or not step.name.endswith(".weight") or step.name not in parts:
            continue
        parameter, expert = parts[step.name]
        module = parameter.rpartition(".")[0]
        if expert is None and not _is_linear(names, module):
            continue
        if is_vocabulary(step.name):
            left.add(module)
        else:
            modules[step.name] = step
    block = next(
        (block for block in BLOCKS if all(not size % block for step in modules.values() for size in step.shape)),
        BLOCKS[-1],
    )
    fitting = {name: step for name, step in modules.items() if all(not size % block for size in step.shape)}
    left |= {parts[name][0].rpartition(".")[0] for name in modules.keys() - fitting.keys()}
    if not fitting:
        raise _refusal(f"no linear layer's weights can be cut into blocks of {block}")
    by_name = {
        name: _encoding(step, Form(kind="fp8", block=(block, block), codes=name, scales=f"{name}_scale_inv"), None)
        for name, step in fitting.items()
    }
    said = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [block, block],
        "modules_to_not_convert": sorted(left) or None,
    }
    return Encodings(by_name=by_name, said=said)


def _is_linear(names: ModelNames, module: str) -> bool:
    kinds = names.kinds_of(module)
    return "Linear" in kinds and not any("GroupedLinear" in kind for kind in kinds)


def _mxfp4(plan: Plan) -> Encodings:
    if config_values(plan.config_from.config, "model_type") & {"gpt_oss"} == set():
        raise _refusal("transformers reads MXFP4 of gpt-oss alone")
    by_name = {
        step.name: _encoding(step, Form(kind="mxfp4", codes=f"{step.name}_blocks", scales=f"{step.name}_scales"), None)
        for step in plan.steps
        if len(step.shape) == 3 and step.name.rpartition(".")[2] in EXPERTS and step.shape[1] % GROUP == 0
    }
    if not by_name:
        raise _refusal(f"no experts are there whose inputs come in groups of {GROUP}")
    others = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return Encodings(by_name=by_name, said={"quant_method": "mxfp4", "modules_to_not_convert": others})


def _encoding(step: Step, form: Form, before: Coded | None) -> Encoding:
    origin = step.base.file.name if step.base and step.base.file else None
    return Encoding(name=step.name, shape=step.shape, form=form, before=before, origin=origin)


def _refusal(message: str) -> MethodError:
    return MethodError(message, hint=WAY_OUT, options=["output_format"])
