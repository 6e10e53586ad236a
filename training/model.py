"""The base as a live model with an adapter to train."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..fusion.checkpoint import Source
from ..fusion.checkpoint.pretrained import is_encoder_decoder
from ..fusion.errors import MethodError, ModelError
from ..live.model import load_model
from ..live.privates import transposed_linear, tree_map
from .layers import adapted_layers, matches
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
    if is_encoder_decoder(model.config) or model.get_output_embeddings() is None:
        raise ModelError(f"`{type(model).__name__}` is not a text decoder; only those can be trained here")
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
    if method.connector_full:
        return [name for name in chosen if name not in connector]
    return list(dict.fromkeys([*chosen, *connector]))


def outermost(model: Any, patterns: Sequence[str]) -> list[str]:
    """Return the names of the modules that match and lie in no other that does."""
    found: list[str] = []
    for name, _ in model.named_modules():  # a module comes before what lies in it
        if matches(name, patterns) and not any(name.startswith(f"{other}.") for other in found):
            found.append(name)
    return found


def shortest(names: list[str], linear: Mapping[str, nn.Module]) -> list[str]:
    """Return the last parts of names where they mean the same layers, else the names."""
    parts = {name.rpartition(".")[2] for name in names}
    meant = {name for name in linear if name.rpartition(".")[2] in parts}
    return sorted(parts) if meant == set(names) else sorted(names)


def with_adapter(model: Any, method: AdapterMethod) -> Any:
    """Return the model wrapped by PEFT; the adapter is float32 and starts at zero (A random, B zero)."""
    from peft import LoraConfig, get_peft_model
    from peft.utils import ModulesToSaveWrapper

    names = target_names(model, method)
    whole = outermost(model, method.connectors) if method.connector_full else []
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.scale_alpha,  # pyright: ignore[reportArgumentType]  (PEFT takes any number)
        target_modules=shortest(names, linear_layers(model)),
        lora_dropout=0.0,
        bias="none",
        use_dora=method.method == "dora",
        task_type="CAUSAL_LM",
        modules_to_save=whole or None,
    )
    with their_deprecations():
        tuned = get_peft_model(model, config)
    for module in tuned.modules():
        if isinstance(module, ModulesToSaveWrapper):
            _train_in_float32(module.modules_to_save["default"], model.dtype)
    return tuned


def _train_in_float32(module: nn.Module, dtype: torch.dtype) -> None:
    """Make a module float32 between others of a narrower dtype, in which small steps would be rounded away."""

    def cast(values: Any, wanted: torch.dtype) -> Any:
        return tree_map(
            lambda value: value.to(wanted) if isinstance(value, torch.Tensor) and value.is_floating_point() else value,
            values,
        )

    if dtype != torch.float32:
        module.float()
        module.register_forward_pre_hook(lambda _module, arguments: cast(arguments, torch.float32))
        module.register_forward_hook(lambda _module, _arguments, output: cast(output, dtype))


def optimizer_of(tuned: Any, method: AdapterMethod, learning_rate: float) -> torch.optim.Optimizer | None:
    """Return AdamW with a rate of its own for the connector; None where one rate is all that is wanted."""
    if method.connector_learning_rate is None:
        return None
    connector = {id(p) for name, p in tuned.named_parameters() if ".modules_to_save." in name}
    for layer in adapted_layers(tuned):
        if matches(layer.name, method.connectors):
            connector |= {id(layer.a), id(layer.b)}
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in connector], "lr": learning_rate},
        {"params": [p for p in trained if id(p) in connector], "lr": method.connector_learning_rate},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)
