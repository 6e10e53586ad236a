"""The private parts of torch and transformers that sculpt uses, each behind a name of our own.

Nothing else uses any, but for transformers' rules for loading, which stand in `fusion/checkpoint/loading_rules.py`,
and those for GGUF, in `fusion/checkpoint/gguf/rules.py`: opening a model needs them, and `fusion` may not import this
room. `tests/live/test_privates.py` says with which versions both were tested, and what vanished where a later version
has moved something.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from torch import nn

__all__ = ["StorageWeakRef", "tree_map"]  # handed on; the rest is defined here

# Operators that only the dispatcher sees.
TO_COPY = torch.ops.aten._to_copy.default
UNSAFE_VIEW = torch.ops.aten._unsafe_view.default


class DispatchMode(TorchDispatchMode):
    """What sees every operation as torch dispatches it to a kernel."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch would import its compiler to keep it out of here: seconds, and memory, though nothing is compiled.
        return False


def newer_operator(name: str) -> Any | None:
    """Return a private operator that older versions of torch lack, such as `_grouped_mm`, or None."""
    found = getattr(torch.ops.aten, name, None)
    return None if found is None else found.default


def storage_key(value: Tensor | torch.UntypedStorage) -> int:
    """Return what identifies a tensor's storage as long as a weak reference to it is held."""
    return (value.untyped_storage() if isinstance(value, Tensor) else value)._cdata


def storage_keys(tensors: Iterable[Tensor]) -> list[int]:
    """Return what identifies each tensor's storage."""
    return [tensor.untyped_storage()._cdata for tensor in tensors]


def storage_of(reference: StorageWeakRef) -> torch.UntypedStorage:
    """Return the storage, which must be alive."""
    return torch.UntypedStorage._new_with_weak_ptr(reference.cdata)


def changes_of(tensor: Tensor) -> int:
    """Return how often a tensor was written to in place."""
    return tensor._version


@cache
def aliases_of(operator: Any) -> tuple[bool, ...]:
    """Return, for each output that shares memory with an input, whether the operator writes there."""
    returned = (output.alias_info for output in operator._schema.returns)
    return tuple(alias.is_write for alias in returned if alias is not None)


def set_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a parameter or buffer in the place of another; unlike `setattr`, whatever class the tensor has."""
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    store: Any = module._parameters if leaf in module._parameters else module._buffers
    store[leaf] = value


def class_of(auto: Any, config: Any) -> Any | None:
    """Return the class that an Auto class makes of a config, or None."""
    from transformers.models.auto.auto_factory import _get_model_class

    mapping = getattr(auto, "_model_mapping", {})  # AutoTokenizer and its like make no model
    return _get_model_class(config, mapping) if type(config) in mapping else None


def remote_class(reference: str, folder: Path) -> Any:
    """Return a class of the code in a model's folder."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    return get_class_from_dynamic_module(reference, str(folder), local_files_only=True)


def on_meta(cls: Any, config: Any, dtype: torch.dtype) -> Any:
    """Return a model on the meta device, built as `from_pretrained` builds it; one expert runs after the other."""
    from transformers.monkey_patching import patch_output_recorders

    # Each expert is then a view of the stack, and its inputs are the tokens routed to it.
    config._experts_implementation = "eager"
    with ExitStack() as stack:
        for context in cls.get_init_context(dtype, False, False, False):
            stack.enter_context(context)
        model = cls(config)
        patch_output_recorders(model)
    # Some parameters are wanted in float32 whatever the rest is in.
    for pattern, wide in model._get_dtype_plan(dtype).items():
        wanted = re.compile(pattern.replace("*", ".*"))
        for name, parameter in model.named_parameters():
            if wanted.search(name):
                parameter.data = parameter.data.to(wide)
    return model


def tied_names(model: Any) -> dict[str, str]:
    """Return the parameters that are another by the model's config, and which."""
    return dict(getattr(model, "all_tied_weights_keys", {}))


def initialise(model: Any, missing: Collection[str]) -> None:
    """Initialise non-persistent buffers and what is missing, which must have memory, and tie the weights."""
    tied = tied_names(model)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in missing or name in tied:
            tensor._is_hf_initialized = True
    model.initialize_weights()
    model.tie_weights(missing_keys=set(missing), recompute_mapping=False)


def may_be_missing(model: Any) -> list[str]:
    """Return patterns of tensors that a checkpoint may lack."""
    return list(getattr(model, "_keys_to_ignore_on_load_missing", None) or ())


def masks_padding(model: Any) -> bool:
    """Return whether a model leaves attention, with its masks, to transformers, so that padding changes no token.

    Models of another kind may run a Fourier transform over it, or windows that it moves. MobileBERT joins neighbouring
    tokens before any mask.
    """
    leaves = model._supports_sdpa or model._supports_attention_backend
    return bool(leaves) and not getattr(model.config, "trigram_input", False)


def routed_experts(model: Any) -> list[nn.Module]:
    """Return the layers of experts that are called with hidden states, the experts chosen and their weights."""
    return [module for module in model.modules() if hasattr(module, "_is_expert_parallel")]


def may_be_unexpected(model: Any) -> list[str]:
    """Return patterns of tensors that a checkpoint may hold without any use for them; as `from_pretrained` does."""
    buffers = [name for name, _ in model.named_buffers()]
    constant = {"rotary_emb.inv_freq": r"rotary_emb\.inv_freq", "position_ids": r"(^|\.)position_ids$"}
    found = [pattern for ending, pattern in constant.items() if any(name.endswith(ending) for name in buffers)]
    return [*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()), *found]


def undivided(model: Any) -> set[str]:
    """Return the names of classes of modules that are not to be split."""
    return set(getattr(model, "_no_split_modules", None) or ())


def transposed_linear() -> type[nn.Module]:
    """Return the linear layer that stores (d_in, d_out)."""
    from transformers.pytorch_utils import Conv1D

    return Conv1D


def around_saving(trainer: Any, around: Callable[[Callable[[], None]], None]) -> None:
    """Have a Trainer's checkpoints saved by `around`, which is given what saves one."""
    save = trainer._save_checkpoint
    trainer._save_checkpoint = lambda *arguments: around(lambda: save(*arguments))


def use_one_gpu(arguments: Any) -> None:
    """Keep transformers' Trainer from spreading a batch over all GPUs that it sees."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
