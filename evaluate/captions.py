"""Captions and how they are scored: CIDEr, by the COCO caption library."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..fusion.errors import DataError, ModelError
from ..live.model import LiveModel
from .generation import cut_at, generate
from .prompting import Prompting
from .rows import Row
from .suite import Caption

Cider = Callable[[Sequence[str], Sequence[Sequence[str]]], float]


def cider() -> Cider:
    """Return the corpus CIDEr (Vedantam et al., CVPR 2015) of captions against references.

    COCO's own tokenizer needs Java; words are split here by what it does: lower case, punctuation left out.

    Raises:
        ModelError: The library is not installed.
    """
    try:
        from pycocoevalcap.cider.cider import Cider as Library  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ModelError(
            "`scorer: caption` needs pycocoevalcap", hint="`pip install 'checkpoint-sculpt[captions]'`"
        ) from error

    def score(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        given = {number: [_words(caption)] for number, caption in enumerate(captions)}
        wanted = {number: [_words(text) for text in texts] for number, texts in enumerate(references)}
        return float(Library().compute_score(wanted, given)[0])

    return score


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower()))


def write_captions(
    task: Caption,
    model: LiveModel,
    rows: Sequence[Row],
    prompting: Prompting,
    *,
    batch_size: int,
    advance: Callable[[int], None],
) -> list[str]:
    """Return a caption for each row: of its `image`, led by its `prompt` where it has one, or of its `prompt` alone."""
    if rows and "image" in rows[0]:
        processor = _processor(model)
        written = []
        for row in rows:
            written.append(_of_image(task, model, processor, row))
            advance(1)
        return written
    prompts = [prompting.prompt(row, room=task.max_new_tokens) for row in rows]
    return generate(
        model,
        prompts,
        max_new_tokens=task.max_new_tokens,
        stop=task.stop,
        batch_size=batch_size,
        advance=advance,
    )


def _processor(model: LiveModel) -> Any:
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(model.path, local_files_only=True)
    except Exception as error:  # transformers raises anything on missing files
        raise DataError(f"`{model.path}` has no processor that transformers can load: {error}") from error


@torch.inference_mode()
def _of_image(task: Caption, model: LiveModel, processor: Any, row: Row) -> str:
    from ..data.media import load_image

    image = load_image(row.get("image"), row.folder, row.what)
    prompt = row.text("prompt") if "prompt" in row else ""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, *([{"type": "text", "text": prompt}] if prompt else [])]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    else:
        token = getattr(processor, "image_token", None)
        text = f"{token}\n{prompt}" if isinstance(token, str) and token not in prompt else prompt
    inputs = dict(processor(images=[image], text=[text] if text else None, return_tensors="pt"))
    prompt_length = inputs["input_ids"].shape[1] if "input_ids" in inputs and not model.is_encoder_decoder else 0
    inputs = {
        name: value.to(model.device, model.model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }
    written = model.model.generate(**inputs, max_new_tokens=task.max_new_tokens, do_sample=False, num_beams=1)
    own = written[0, prompt_length:] if written.shape[1] > prompt_length else written[0]
    tokenizer = getattr(processor, "tokenizer", model.tokenizer)
    return cut_at(tokenizer.decode(own, skip_special_tokens=True), task.stop)
