"""Tiny models with adapters, data for them, and a word tokenizer."""

from __future__ import annotations

import base64
import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers

WORDS = ["<unk>", "</s>", "<image>", "user", "assistant", *"abcdefghijklmnop", "x", "0"]
CHAT = (
    "{% for m in messages %}{{ m.role }} {% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<image> {% else %}{{ p.text }} {% endif %}{% endfor %}{% endif %} </s> {% endfor %}"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": len(WORDS),
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "eos_token_id": 1,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="</s>", pad_token="</s>", image_token="<image>"
    )
    found.chat_template = CHAT
    return found


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, **options}))


def llama_folder(folder: Path) -> Path:
    llama().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def llava_folder(
    folder: Path,
    words: Any = None,
    *,
    sizes: Mapping[str, Any] = MappingProxyType(SIZES),
    image: int = WORDS.index("<image>"),
    chat: str = CHAT,
) -> Path:
    """Write a model with its processor; `words` is a tokenizer with that image token, by default this module's."""
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=32),
        text_config=transformers.LlamaConfig(**sizes),
        image_token_index=image,
        vision_feature_layer=-2,
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    transformers.LlavaProcessor(
        image_processor=images,
        tokenizer=words or tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat,
    ).save_pretrained(folder)
    return folder


def adapted(model: Any, *, seed: int = 0, **options: Any) -> Any:
    """Return the model with a LoRA whose B is not zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"], **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return tuned


def write_rows(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def sentences(file: Path, count: int = 24) -> Path:
    """Write prompts whose completion is the same letters, backwards."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        letters = [WORDS[5 + int(k)] for k in torch.randint(0, 8, (4,), generator=generator)]
        rows.append({"prompt": " ".join(letters), "completion": " " + " ".join(reversed(letters))})
    return write_rows(file, *rows)


def picture(seed: int) -> str:
    """Return a picture as a data URL."""
    from PIL import Image

    pixels = torch.randint(0, 256, (16, 16, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
