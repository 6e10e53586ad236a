"""What diffusers calls the modules of a Stable Diffusion U-Net that lies in one file, under the names it had first.

`input_blocks.4.1.proj_in` of the file is `down_blocks.1.attentions.0.proj_in`: blocks are counted one by one there, and
by resolution in diffusers. This holds for the U-Nets of Stable Diffusion 1 and 2, of two layers a resolution; LoRAs of
SDXL that were trained on a single file have the file's own names.
"""

from __future__ import annotations

import re

BLOCK = re.compile(r"(?P<side>input_blocks|output_blocks)\.(?P<number>\d+)\.(?P<part>\d+)(\.(?P<rest>.+))?")
MIDDLE = re.compile(r"middle_block\.(?P<part>[012])\.(?P<rest>.+)")
RESNET = {  # of a residual block, in diffusers' words
    "in_layers.2": "conv1",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
LAYERS = 2  # a resolution, on the way down; one more on the way up


def diffusers_names(module: str) -> list[str]:
    """Return what diffusers calls a module of a single file; nothing of one that it calls the same, or is not known."""
    middle, block = MIDDLE.fullmatch(module), BLOCK.fullmatch(module)
    if middle is not None:
        part, rest = int(middle["part"]), middle["rest"]
        return [f"mid_block.attentions.0.{rest}"] if part == 1 else _resnet(f"mid_block.resnets.{part // 2}", rest)
    if block is None or block["rest"] is None:
        return []
    number, part, rest = int(block["number"]), int(block["part"]), block["rest"]
    if block["side"] == "input_blocks":
        level, layer = divmod(number - 1, LAYERS + 1)
        if number == 0:
            return []
        if rest == "op":
            return [f"down_blocks.{level}.downsamplers.0.conv"]
        side = "down_blocks"
    else:
        level, layer = divmod(number, LAYERS + 1)
        if rest == "conv":
            return [f"up_blocks.{level}.upsamplers.0.conv"]
        side = "up_blocks"
    if part == 0:
        return _resnet(f"{side}.{level}.resnets.{layer}", rest)
    return [f"{side}.{level}.attentions.{layer}.{rest}"]


def _resnet(block: str, rest: str) -> list[str]:
    return [f"{block}.{RESNET[rest]}"] if rest in RESNET else []
