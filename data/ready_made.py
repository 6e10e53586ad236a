"""Rows that hold a model's inputs ready-made: used whole, but for padding, which is taken out."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from ..fusion.errors import DataError
from .example import IGNORED
from .row import Row
from .texts import Inputs, selected
from .tokens import Tokens

# One of these makes a row ready-made.
MAIN = (
    "input_ids",
    "inputs_embeds",
    "decoder_input_ids",
    "pixel_values",
    "pixel_values_videos",
    "input_features",
    "input_values",
)
# Of one row for each patch or each picture, whatever the batch, as Qwen's processors give them.
PATCHED = "_grid_thw"


def ready_made(
    row: Row, arguments: Collection[str], model: str, *, is_encoder_decoder: bool
) -> tuple[Inputs, Tokens, Tokens | None]:
    """Return the inputs that a row holds, with a batch axis and without padding; its tokens, and its completion.

    `labels` say what is to be predicted; without them all of it is. An encoder–decoder's are its completion.

    Args:
        arguments: What the model's forward takes.
        model: Names it.

    Raises:
        DataError: A field is not an array of numbers, or is of another length than the tokens.
    """
    given = {key: _tensor(row, key) for key in row if key in arguments or key == "labels"}
    labels = given.pop("labels", None)
    if not any(key in given for key in MAIN):
        raise DataError(f"{row.what} holds {row.names}, none of which `{model}` takes")
    is_batch = "input_ids" in given and given["input_ids"].ndim == 2
    if is_batch and given["input_ids"].shape[0] != 1:
        raise DataError(f"`input_ids` of {row.what} is a batch of {given['input_ids'].shape[0]}; a row is one sample")
    if not is_batch:
        has_patches = any(key.endswith(PATCHED) for key in given)
        given = {key: _with_batch_axis(key, value, has_patches) for key, value in given.items()}
    ids, said, answers = given.get("input_ids"), None, None
    if labels is not None and labels.numel():
        said = labels.reshape(-1).tolist()
    if said is not None and not is_encoder_decoder and ids is not None:
        answers = _answers(said, ids, row)
    if ids is not None and ids.shape[1]:
        given, answers = _unpadded(given, answers, row)
    if "decoder_input_ids" in given:
        given = _decoder_unpadded(given)
    for key in ("input_ids", "qformer_input_ids"):
        mask = key.replace("input_ids", "attention_mask")
        if key in given and mask in arguments:
            given.setdefault(mask, torch.ones_like(given[key]))
    tokens = Tokens.all_predicted(given["input_ids"][0].tolist() if "input_ids" in given else [])
    if answers is not None:
        tokens = Tokens(ids=tokens.ids, answers=answers)
    completion = None
    if said is not None and is_encoder_decoder:
        completion = Tokens.all_predicted([label for label in said if label != IGNORED])
    return given, tokens, completion


def _tensor(row: Row, key: str) -> Tensor:
    """Return a field as numbers: whole ones, true or false, or float32."""
    try:
        array = np.asarray(row.get(key))
        if key.endswith(("_ids", "_mask")) and array.dtype.kind == "f" and np.array_equal(array, np.trunc(array)):
            array = array.astype(np.int64)
        kinds = {"b": torch.bool, "i": torch.int64, "u": torch.int64, "f": torch.float32}
        if not array.ndim and key != "labels":
            raise TypeError
        if key.endswith("_ids") and array.size and array.dtype.kind not in "iu":
            raise DataError(f"`{key}` of {row.what} is not an array of whole numbers")
        return torch.tensor(array, dtype=kinds[array.dtype.kind])
    except (TypeError, ValueError, KeyError, OverflowError, RuntimeError) as error:
        if isinstance(row.get(key), list) and not row.get(key):
            return torch.zeros(0, dtype=torch.int64)
        raise DataError(f"`{key}` of {row.what} is not an array of numbers") from error


def _with_batch_axis(key: str, value: Tensor, has_patches: bool) -> Tensor:
    if value.ndim == 2 and (key.endswith(PATCHED) or (has_patches and key.startswith("pixel_values"))):
        return value
    if key == "position_ids" and value.ndim == 2:  # one a direction, as Qwen's
        return value.unsqueeze(1)
    return value.unsqueeze(0)


def _answers(labels: list[int], ids: Tensor, row: Row) -> list[int] | None:
    """Return which tokens labels name; None where they are a class."""
    if len(labels) == 1 != ids.shape[1]:
        return None
    if len(labels) != ids.shape[1]:
        raise DataError(f"{row.what} has {ids.shape[1]} `input_ids` and {len(labels)} `labels`")
    return [0 if label != IGNORED else IGNORED for label in labels]


def _unpadded(given: Inputs, answers: list[int] | None, row: Row) -> tuple[Inputs, list[int] | None]:
    """Return inputs and answers without the tokens that the attention mask hides from all others."""
    mask, length = given.get("attention_mask"), given["input_ids"].shape[1]
    if mask is None or mask.ndim != 2:
        return given, answers
    if mask.shape[1] != length:
        raise DataError(f"{row.what} has {length} `input_ids` and an `attention_mask` of {mask.shape[1]}")
    places = mask[0].nonzero()[:, 0].tolist()
    kept = None if answers is None else [answers[place] for place in places]
    return selected(given, places, length), kept


def _decoder_unpadded(given: Inputs) -> Inputs:
    mask = given.get("decoder_attention_mask")
    if mask is None:
        return given
    kept = mask[0].nonzero()[:, 0]
    own = {key: given[key][:, kept] for key in ("decoder_input_ids", "decoder_attention_mask")}
    return {**given, **own}
