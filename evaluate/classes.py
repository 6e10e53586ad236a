"""The class that a model with a classification head ranks first, for texts, pairs of texts and images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..data.row import Row
from ..fusion.errors import DataError
from .live_model import LiveModel


@torch.inference_mode()
def classify(
    model: LiveModel, rows: Sequence[Row], *, batch_size: int, max_length: int, advance: Callable[[int], None]
) -> list[bool]:
    """Return for each row whether its `label` is the class ranked first."""
    config = model.model.config
    numbers = {str(name): int(number) for number, name in (config.id2label or {}).items()}
    right: list[bool] = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        inputs = _images(model, batch) if "image" in batch[0] else _texts(model, batch, max_length)
        found = model.model(**model.inputs(**inputs)).logits.argmax(-1).tolist()
        for row, number in zip(batch, found, strict=True):
            right.append(number == _label(row, numbers, config.num_labels))
        advance(len(batch))
    return right


def _label(row: Row, numbers: dict[str, int], count: int) -> int:
    label: Any = row.get("label")
    if isinstance(label, str) and label in numbers:
        return numbers[label]
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < count:
        return label
    raise DataError(f"`label` of {row.what} is `{label}`, which is none of the model's {count} classes")


def _texts(model: LiveModel, rows: Sequence[Row], max_length: int) -> dict[str, torch.Tensor]:
    texts = [row.text("text") for row in rows]
    pairs = [row.text("text_pair") for row in rows] if "text_pair" in rows[0] else None
    limit = min(max_length, model.tokenizer.model_max_length)
    return dict(model.tokenizer(texts, pairs, padding=True, truncation=True, max_length=limit, return_tensors="pt"))


def _images(model: LiveModel, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    from transformers import AutoImageProcessor

    from ..data.media import load_image

    try:
        processor = AutoImageProcessor.from_pretrained(model.path, local_files_only=True)
    except Exception as error:  # transformers raises anything on missing files
        raise DataError(f"`{model.path}` has no image processor that transformers can load: {error}") from error
    images = [load_image(row.get("image"), row.folder, row.what) for row in rows]
    return dict(processor(images=images, return_tensors="pt"))
