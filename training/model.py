"""The base as a live model with an adapter to train."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..fusion.checkpoint import Source
from ..fusion.errors import MethodError, ModelError
from ..live.model import load_model
from ..live.privates import transposed_linear
from .layers import matches
from .settings import AdapterMethod, split


@contextmanager
def their_deprecations() -> Iterator[None]:
    """Silence what PEFT and transformers have to tell each other about names that will change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def load_base(base: Source, *, dtype: torch.dtype) -> Any:
    """Return the base as its config's class loads it, frozen.

    Raises:
        ModelError: transformers refuses it, or it is an encoder–decoder.
    """
    model = load_model(base, device="cpu", dtype=dtype, may_stream=False).model  # the Trainer moves it
    if model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        raise ModelError(
            f"`{type(model).__name__}` is not a text decoder, the only kind of model that can be trained here"
        )
    return model.requires_grad_(False)


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """Return the layers that a LoRA can adapt as a matrix, by their names."""
    kinds = (nn.Linear, transposed_linear())
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def target_names(model: Any, method: AdapterMethod) -> list[str]:
    """Return the names of the modules to adapt.

    Raises:
        MethodError: Nothing matches.
    """
    linear = linear_layers(model)
    if method.target_modules is None:
        decoder = model.get_decoder()
        prefix = next((f"{name}." for name, module in model.named_modules() if module is decoder and name), "")
        output = model.get_output_embeddings()
        chosen = [name for name, module in linear.items() if name.startswith(prefix) and module is not output]
    else:
        patterns = split(method.target_modules)
        chosen = [name for name in linear if matches(name, patterns)]
        idle = [pattern for pattern in patterns if not any(matches(name, [pattern]) for name in linear)]
        if idle:
            kinds = sorted({name.rpartition(".")[2] for name in linear})
            raise MethodError(f"no linear layer matches `{idle[0]}`", hint=f"their names end in {', '.join(kinds)}")
    connector = [name for name in linear if matches(name, method.connectors)]
    if method.connector is not None and not connector:
        raise MethodError(f"no linear layer matches the connector `{method.connector}`")
    return list(dict.fromkeys([*chosen, *connector]))


def shortest(names: list[str], linear: Mapping[str, nn.Module]) -> list[str]:
    """Return the last parts of names where they mean the same layers, else the names."""
    parts = {name.rpartition(".")[2] for name in names}
    meant = {name for name in linear if name.rpartition(".")[2] in parts}
    return sorted(parts) if meant == set(names) else sorted(names)


def with_adapter(model: Any, method: AdapterMethod) -> Any:
    """Return the model wrapped by PEFT; the adapter is float32 and starts at zero (A random, B zero)."""
    from peft import LoraConfig, get_peft_model

    names = target_names(model, method)
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.scale_alpha,  # pyright: ignore[reportArgumentType]  (PEFT takes any number)
        target_modules=shortest(names, linear_layers(model)),
        lora_dropout=0.0,
        bias="none",
        use_dora=method.method == "dora",
        task_type="CAUSAL_LM",
    )
    with their_deprecations():
        return get_peft_model(model, config)
