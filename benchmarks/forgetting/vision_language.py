"""The vision–language model of the tasks with pictures: EfficientNet-Lite0, a connector, SmolLM2-135M-Instruct.

The base is made once: its connector learns to name emojis, both ends frozen. Fine-tunes move connector and language
model; the tower stays as it is, so what it sees of each picture is known for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from assembly import PATCHES, look, processor, untrained
from images import VIEWS, Shown, names, pictures
from language import Language
from safetensors.torch import load_file, save_file
from sculpt.data.example import IGNORED, Example
from sculpt.demo.models import new_folder
from sculpt.demo.task import Question
from sculpt.training.full import FullTraining, fine_tune
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutput

BASE = "FastVLM-SmolLM2-135M-EfficientNet-Lite0"
FIRST_PATCH = 1 << 20  # the id of the first patch of the first picture: beyond every vocabulary
CONNECTOR = FullTraining(steps=480, batch_size=16, learning_rate=1e-3, max_minutes=None, seed=0)
ALIGNING_STEPS, ALIGNED_AT_ONCE, TEMPERATURE = 300, 128, 0.1


class Reader(torch.nn.Module):
    """The language model and the connector, as a model of text in which ids from `FIRST_PATCH` on are patches.

    Args:
        model: The whole.
        seen: What the tower says of all pictures (pictures, patches, width).
    """

    def __init__(self, model: Any, seen: Tensor) -> None:
        super().__init__()
        self.whole = (model,)  # in a tuple, whose modules are not this one's: the tower is neither trained nor moved
        self.connector = model.model.multi_modal_projector
        self.language = model.model.language_model
        self.head = model.lm_head
        self.seen = seen.flatten(0, 1)

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def get_output_embeddings(self) -> Any:
        return self.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool = False) -> Any:
        is_patch = input_ids >= FIRST_PATCH
        words = self.language.embed_tokens(torch.where(is_patch, 0, input_ids))
        patches = self.connector(self.seen[input_ids[is_patch] - FIRST_PATCH]).to(words.dtype)
        inputs = words.masked_scatter(is_patch[..., None], patches)
        found = self.language(inputs_embeds=inputs, attention_mask=attention_mask, use_cache=use_cache)
        return CausalLMOutput(logits=self.head(found.last_hidden_state))


def align(reader: Reader, examples: Sequence[Example]) -> None:
    """Train the connector to make the mean patch of a picture like the mean embedding of its name, among others.

    A quick start: the language model is not run. Examples are in the order of the pictures that the reader has seen.
    """
    words = reader.language.embed_tokens.weight
    size = words.square().mean().sqrt()
    said = [example.tokens[example.answers != IGNORED] for example in examples]
    names = torch.stack([words[tokens].mean(0) for tokens in said])
    middle = names.mean(0)
    optimizer = torch.optim.AdamW(reader.connector.parameters(), lr=CONNECTOR.learning_rate)
    for _ in range(ALIGNING_STEPS):
        batch = torch.randint(len(examples), (ALIGNED_AT_ONCE,))
        patches = reader.connector(reader.seen.unflatten(0, (-1, PATCHES))[batch])
        likeness = cosines(patches.mean(1) - middle, names[batch] - middle)
        own = torch.nn.functional.cross_entropy(likeness / TEMPERATURE, torch.arange(len(batch)))
        as_large = (patches.square().mean().sqrt() / size - 1).abs()  # as the embeddings that the language model knows
        (own + 10 * as_large).backward()
        optimizer.step()
        optimizer.zero_grad()


def cosines(left: Tensor, right: Tensor) -> Tensor:
    normalized = torch.nn.functional.normalize
    return normalized(left, dim=-1) @ normalized(right, dim=-1).T


class VisionLanguage(Language):
    """A model of pictures and text; what it says of text alone is what `Language` says."""

    compute = torch.bfloat16

    def base(self, work: Path) -> Path:
        folder = work / "models" / BASE
        if not folder.exists():
            with new_folder(folder) as building:
                self.save(self.made(), building)
        return folder

    def made(self) -> Reader:
        """Return the base: its connector is trained to name emojis, each in several views, both ends frozen."""
        model = untrained()
        shown = [example.anew(view) for example in names()["train"] for view in range(VIEWS)]
        reader = Reader(model, look(model.model.vision_tower, [example.picture for example in shown]))
        for parameter in reader.parameters():
            parameter.requires_grad_(False)
        for parameter in reader.connector.parameters():
            parameter.requires_grad_(True)
        rows = [self.with_patches(example, number) for number, example in enumerate(shown)]
        torch.manual_seed(CONNECTOR.seed)
        align(reader, rows)
        fine_tune(reader, rows, CONNECTOR, compute=self.compute)
        return reader

    def encode(self, item: str | Question) -> Example:
        """Return a question, or the beginning of a text, as tokens; pictures come first."""
        return self.with_patches(item, pictures()[item.picture]) if isinstance(item, Shown) else super().encode(item)

    def with_patches(self, shown: Shown, number: int) -> Example:
        """Return a question as tokens; `number` is that of its picture among those seen."""
        example = super().encode(shown)
        start = FIRST_PATCH + PATCHES * number
        ids = [*range(start, start + PATCHES), *example.tokens[0].tolist()]
        return Example.of_tokens(ids, [IGNORED] * PATCHES + example.answers[0].tolist())

    def load(self, work: Path, folder: Path) -> Reader:
        from transformers import AutoModelForImageTextToText

        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        return Reader(model, self.seen(work, model.model.vision_tower))

    def seen(self, work: Path, eyes: Any) -> Tensor:
        """Return what the tower says of all pictures; looked at once, as every model's tower must be the base's.

        Raises:
            ValueError: It is not.
        """
        file = work / "models" / f"{BASE}-seen.safetensors"
        known = load_file(file) if file.exists() else {}
        if not known:
            known = {name: tensor.clone() for name, tensor in eyes.state_dict().items()}
            known["seen"] = look(eyes, [*pictures()])
            save_file(known, file)
        if not all(torch.equal(known[name], tensor) for name, tensor in eyes.state_dict().items()):
            raise ValueError("this model's tower is not the base's")
        return known["seen"]

    def save(self, model: Reader, folder: Path) -> None:
        """Write the checkpoint of a model that `load` gave, in bfloat16, with its processor."""
        model.whole[0].to(torch.bfloat16).save_pretrained(folder)
        processor().save_pretrained(folder)
