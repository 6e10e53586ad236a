"""What kind of module each tensor of a checkpoint belongs to: what PEFT can adapt, and under which name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..checkpoint import Source
from ..checkpoint.adapter.module_names import ModelNames
from ..checkpoint.adapter.targets import PREFIX
from ..errors import CheckpointError, Way
from ..names import VOCABULARY_MODULES, config_values
from .modules import Module

Kind = Literal["linear", "transposed", "embedding", "convolution", "whole"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A tensor of the base as a part of a module.

    Attributes:
        kind: How δ is stored: (d_out, d_in), (d_in, d_out), a vocabulary (V, d), (d_out, d_in, kernel), or not as a
            product at all.
        parameter: Its name in the model; empty for a tensor that is only a part of a parameter.
    """

    kind: Kind
    parameter: str

    @property
    def module(self) -> Module:
        """The module, as it is named in an adapter's file."""
        name = self.parameter.rpartition(".")[0]
        return Module(key=PREFIX + name, pattern=name, embedding=self.kind == "embedding")


def layers_of(base: Source) -> dict[str, Layer]:
    """Return every tensor of a checkpoint as a layer.

    The model's own class tells, built without weights; where transformers does not know it, the checkpoint's names are
    taken for the model's, and matrices for linear layers unless they are named like a vocabulary.
    """
    names = ModelNames(base)
    try:
        parameters = names.parameters
        by_tensor = {
            found.parts[0].tensor: name
            for name, found in parameters.items()
            if len(found.parts) == 1 and found.parts[0].expert is None
        }
        return {
            tensor: Layer(kind=_kind(names, by_tensor[tensor]), parameter=by_tensor[tensor])
            if tensor in by_tensor
            else Layer(kind="whole", parameter="")
            for tensor in base.tensors
        }
    except (CheckpointError, ImportError):
        return {name: Layer(kind=_guess(base, name), parameter=name) for name in base.tensors}


def _kind(names: ModelNames, parameter: str) -> Kind:
    module, _, leaf = parameter.rpartition(".")
    if leaf != "weight":
        return "whole"
    ancestry = names.kinds_of(module)
    if "Conv1D" in ancestry:
        return "transposed"
    if "Linear" in ancestry:
        return "linear"
    if "Embedding" in ancestry:
        return "embedding"
    if {"Conv1d", "Conv2d", "Conv3d"} & ancestry and names.groups_of(module) == 1:
        return "convolution"
    return "whole"


def _guess(base: Source, name: str) -> Kind:
    parts, shape = name.split("."), base.tensors[name].shape
    if len(parts) < 2 or parts[-1] != "weight" or len(shape) != 2:
        return "whole"
    inputs = VOCABULARY_MODULES - {"lm_head", "embed_out", "output", "decoder", "predictions"}
    return "embedding" if parts[-2] in inputs else "linear"


def refuse_tied(base: Source, tensor: str) -> None:
    """Raise CheckpointError for a vocabulary matrix that serves as input and output: an adapter sits at one of them."""
    shapes = {name: info.shape for name, info in base.tensors.items()}
    if True not in config_values(base.config, "tie_word_embeddings"):
        return
    parts = tensor.split(".")
    is_vocabulary = len(parts) > 1 and parts[-2] in VOCABULARY_MODULES and len(shapes[tensor]) == 2
    if is_vocabulary and shapes[tensor][0] in config_values(base.config, "vocab_size"):
        raise CheckpointError(
            f"fine-tuning changed `{tensor}`, which the base ties to its output layer; an adapter can store "
            f"only one of them",
            ways=[Way(option="exclude", value=tensor, effect="leaves its change out")],
        )
