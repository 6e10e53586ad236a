"""What the weight files of a model are called: by transformers, by diffusers, and where there are variants of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

INDEX = re.compile(r"(?P<stem>\w+)\.(?P<ending>safetensors|bin)\.index(\.(?P<variant>\w+))?\.json")
WEIGHTS = re.compile(r"(?P<stem>\w+)(\.(?P<variant>\w+))?\.(?P<ending>safetensors|bin)")
MODEL, TORCH, DIFFUSERS, CONSOLIDATED = "model", "pytorch_model", "diffusion_pytorch_model", "consolidated"
ENDINGS = {  # in the order of the loaders; Mistral's own layout is the last
    MODEL: ("safetensors",),
    TORCH: ("bin",),
    DIFFUSERS: ("safetensors", "bin"),
    CONSOLIDATED: ("safetensors",),
}
KEPT = (DIFFUSERS, CONSOLIDATED)  # whoever loads these looks for nothing else


@dataclass(frozen=True, kw_only=True)
class FileNames:
    """The names of a model's safetensors files.

    Attributes:
        stem: `model`, diffusers' `diffusion_pytorch_model` or Mistral's `consolidated`.
        variant: Such as `fp16`; empty where there is none.
    """

    stem: str = MODEL
    variant: str = ""

    @property
    def _end(self) -> str:
        return f".{self.variant}" if self.variant else ""

    @property
    def single(self) -> str:
        """The name of a file that holds all."""
        return f"{self.stem}{self._end}.safetensors"

    def shard(self, number: int, count: int) -> str:
        """Return the name of one of several, counted from 1."""
        return f"{self.stem}{self._end}-{number:05d}-of-{count:05d}.safetensors"

    @property
    def index(self) -> str:
        """The name of the index of several."""
        return f"{self.stem}.safetensors.index{self._end}.json"


def names_of(found: Path) -> FileNames:
    """Return what files beside one that was found are called; of a name that no loader looks for, the usual ones."""
    matched = INDEX.fullmatch(found.name) or WEIGHTS.fullmatch(found.name)
    if matched is None or matched["stem"] not in (*ENDINGS, *KEPT):
        return FileNames()
    stem = matched["stem"] if matched["stem"] in KEPT else MODEL
    return FileNames(stem=stem, variant=matched["variant"] or "")


def find_files(folder: Path) -> dict[str, list[Path]]:
    """Return the weight files and indices that loaders look for, by variant, the first choice in front."""
    order = {(stem, ending): k for k, (stem, ending) in enumerate((s, e) for s, own in ENDINGS.items() for e in own)}
    found: list[tuple[str, int, bool, Path]] = []
    for file in folder.iterdir():
        matched = INDEX.fullmatch(file.name) or WEIGHTS.fullmatch(file.name)
        place = order.get((matched["stem"], matched["ending"])) if matched else None
        if matched is not None and place is not None and file.is_file():
            found.append((matched["variant"] or "", place, file.suffix == ".json", file))
    by_variant: dict[str, list[Path]] = {}
    for variant, _, _, file in sorted(found):
        by_variant.setdefault(variant, []).append(file)
    return by_variant
