"""Pictures with what is said of them: emojis with their names, and drawn scenes described in French.

| | from | used |
|---|---|---|
| `names` | Noto emoji: pictures that the base was never shown | scored |
| `names` | Noto emoji: pictures that the base learned to name | protects |
| `scenes` | four places of a drawing, each empty or with one of 6 shapes in one of 6 colours | target |
"""

from __future__ import annotations

import base64
import io
import json
import random
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from corpora import SEED
from sculpt.demo.fetch import Package, fetch
from sculpt.demo.task import Question
from sculpt.fusion.cache import default_cache

NOTO = Package(
    index="npm",
    name="emoji-datasource-google",
    version="16.0.0",
    file="emoji-datasource-google-16.0.0.tgz",
    sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    megabytes=74,
)
SIZE = 128  # pixels a side
IMAGE = "<image>"  # the token that a picture takes the place of
UNNAMEABLE = ("country-flag", "alphanum", "skin-tone")  # names that no picture of another emoji helps to tell
NUM_NAMES = {"test": 240, "validation": 80}  # the others train the base
VIEWS = 4  # of an emoji, for the base to learn from: as it is, then mirrored, shifted and scaled
NUM_SCENES = {"train": 1200, "validation": 40, "test": 120}
HALF = SIZE // 2
COLOURS = {
    "rouge": (214, 40, 40),
    "bleu": (40, 80, 214),
    "vert": (40, 150, 60),
    "jaune": (245, 205, 40),
    "noir": (25, 25, 25),
    "rose": (240, 130, 190),
}
SHAPES: dict[str, tuple[tuple[float, float], ...]] = {  # corners in a square of side 2 about the origin
    "cercle": (),
    "carré": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": ((0, -1), (0.95, 0.8), (-0.95, 0.8)),
    "losange": ((0, -1), (0.65, 0), (0, 1), (-0.65, 0)),
    "croix": tuple(
        (x, y)
        for x, y in (
            *((-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)),
            *((0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)),
        )
    ),
    "flèche": ((-1, -0.3), (0.1, -0.3), (0.1, -0.85), (1, 0), (0.1, 0.85), (0.1, 0.3), (-1, 0.3)),
}
EMPTY = "vide"


@dataclass(frozen=True, kw_only=True)
class Shown(Question):
    """A picture, and what is said of it; the prompt follows the picture.

    Attributes:
        picture: Its name, by which `picture` finds it.
    """

    picture: str

    def anew(self, view: int) -> Shown:
        """Return it with another view of its emoji."""
        return replace(self, picture=f"{self.picture.rpartition(' ')[0]} {view}")


def shown_as(picture: str, prompt: str, words: Iterable[str]) -> Shown:
    return Shown(picture=picture, prompt=f"\n{prompt}:", answers=tuple(f" {word}" for word in words))


@cache
def noto() -> dict[str, bytes]:
    """Return the PNG file of each emoji, 64 pixels a side."""
    with tarfile.open(fetch(NOTO, default_cache())) as package:
        files = {member.name: package.extractfile(member) for member in package if "/img/google/64/" in member.name}
        return {name.rpartition("/")[2]: file.read() for name, file in files.items() if file}


@cache
def names() -> dict[str, tuple[Shown, ...]]:
    """Return the emojis and their names by split; skin tones of one emoji are left out."""
    with tarfile.open(fetch(NOTO, default_cache())) as package:
        listed = package.extractfile("package/emoji.json")
        assert listed is not None
        emojis = [e for e in json.load(listed) if e["has_img_google"] and e["subcategory"] not in UNNAMEABLE]
    random.Random(SEED).shuffle(emojis)
    shown = [shown_as(f"emoji {emoji['image']} 0", "Name", emoji["name"].lower().split()) for emoji in emojis]
    splits, start = {}, 0
    for split, count in NUM_NAMES.items():
        splits[split] = tuple(shown[start : start + count])
        start += count
    return splits | {"train": tuple(shown[start:])}


@cache
def scenes() -> dict[str, tuple[Shown, ...]]:
    """Return scenes and their descriptions, place after place as one reads, by split; no scene is in two."""
    chance = random.Random(SEED)
    found: dict[str, Shown] = {}
    while len(found) < sum(NUM_SCENES.values()):
        things = [(chance.choice([*SHAPES]), chance.choice([*COLOURS])) for _ in range(4)]
        places = [EMPTY if chance.random() < 0.15 else " ".join(thing) for thing in things]
        name = f"scene {'; '.join(places)}"
        found.setdefault(name, shown_as(name, "Scène", [word for place in places for word in place.split()]))
    shown, splits, start = [*found.values()], {}, 0
    for split, count in NUM_SCENES.items():
        splits[split] = tuple(shown[start : start + count])
        start += count
    return splits


@cache
def pictures() -> dict[str, int]:
    """Return the names of all pictures, numbered; of emojis only as they are."""
    shown = [example.picture for group in (names(), scenes()) for split in group.values() for example in split]
    return {name: number for number, name in enumerate(shown)}


def picture(name: str) -> Any:
    """Return a picture in RGB: `emoji FILE VIEW` or `scene DESCRIPTION`."""
    kind, _, rest = name.partition(" ")
    if kind == "scene":
        return drawn(rest)
    file, view = rest.split()
    return emoji(noto()[file], random.Random(name) if view != "0" else None)


def emoji(png: bytes, chance: random.Random | None) -> Any:
    """Return an emoji on white; with `chance`, a little elsewhere, smaller or larger, and mirrored or not."""
    from PIL import Image, ImageOps

    own = Image.open(io.BytesIO(png)).convert("RGBA")
    side, left, top = SIZE, 0, 0
    if chance is not None:
        side = chance.randint(SIZE * 3 // 4, SIZE * 9 // 8)
        left, top = (chance.randint(*sorted((0, SIZE - side))) for _ in range(2))
        own = ImageOps.mirror(own) if chance.random() < 0.5 else own
    own = own.resize((side, side), Image.Resampling.BICUBIC)
    whole = Image.new("RGB", (SIZE, SIZE), "white")
    whole.paste(own, (left, top), own)
    return whole


def drawn(description: str) -> Any:
    """Return a drawing of four places, the things in them a little off their middles and of any size."""
    from PIL import Image, ImageDraw

    chance = random.Random(description)
    whole = Image.new("RGB", (2 * SIZE, 2 * SIZE), "white")  # scaled down at the end, which smooths edges
    pen = ImageDraw.Draw(whole)
    for place, thing in enumerate(description.split("; ")):
        size, across, down = chance.uniform(0.55, 0.8), chance.uniform(-0.15, 0.15), chance.uniform(-0.15, 0.15)
        if thing == EMPTY:
            continue
        shape, colour = thing.split()
        middle = (2 * (place % 2) + 1 + across, 2 * (place // 2) + 1 + down)
        corners = [tuple(HALF * (m + size * c) for m, c in zip(middle, at, strict=True)) for at in SHAPES[shape]]
        if corners:
            pen.polygon(corners, fill=COLOURS[colour])
        else:
            pen.ellipse([*(HALF * (m - size) for m in middle), *(HALF * (m + size) for m in middle)], COLOURS[colour])
    return whole.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def as_row(example: Shown) -> Mapping[str, str]:
    """Return the row that `sculpt calibrate` reads, the picture within it."""
    file = io.BytesIO()
    picture(example.picture).save(file, "png")
    return {
        "image": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}",
        "text": IMAGE + example.text,
    }
