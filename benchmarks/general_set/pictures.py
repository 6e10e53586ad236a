"""Write the pictures of the general set, `configs/general/images/`: photographs that anyone may use, and drawings.

    python benchmarks/general_set/pictures.py    # fetches scikit-image, for its photographs; needs Pillow

All are of one size, so that a model answers questions about several at once. `questions.jsonl` beside them is written by hand.
"""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from sculpt.demo.fetch import Package, fetch
from sculpt.fusion.cache import default_cache

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "general" / "images"
SIZE = 160
QUALITY = 62
PHOTOGRAPHS = Package(
    index="pypi",
    name="scikit-image",
    version="0.25.2",
    file="scikit_image-0.25.2-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    sha256="24cc986e1f4187a12aa319f777b36008764e856e5013666a4a83f8df083c2641",
    megabytes=15,
)
# Public domain or CC0, by the docstrings of `skimage.data`.
TAKEN = ("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "hubble_deep_field.jpg",
         "rocket.jpg")  # fmt: skip
INK, PAPER = (25, 25, 40), (250, 250, 245)
COLOURS = [(200, 60, 50), (50, 110, 190), (60, 150, 80), (230, 170, 40), (130, 80, 160)]


def photographs() -> dict[str, Image.Image]:
    """Return the middle of each photograph, by name."""
    found = {}
    with zipfile.ZipFile(fetch(PHOTOGRAPHS, default_cache())) as wheel:
        for name in TAKEN:
            image = Image.open(io.BytesIO(wheel.read(f"skimage/data/{name}"))).convert("RGB")
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.crop((left, top, left + side, top + side))
            found[name.partition(".")[0].partition("_")[0]] = square.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return found


def page(paper: tuple[int, int, int] = PAPER) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (SIZE, SIZE), paper)
    return image, ImageDraw.Draw(image)


def written(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int = 13, ink: tuple = INK) -> None:
    draw.text(at, text, fill=ink, font=ImageFont.load_default(size))


def bars() -> Image.Image:
    image, draw = page()
    written(draw, (30, 4), "Visitors a month")
    for place, (name, height) in enumerate((("Jan", 40), ("Feb", 62), ("Mar", 95), ("Apr", 71))):
        draw.rectangle((22 + 34 * place, 136 - height, 44 + 34 * place, 136), fill=COLOURS[place])
        written(draw, (22 + 34 * place, 140), name)
    draw.line((14, 136, 154, 136), fill=INK, width=2)
    return image


def curve() -> Image.Image:
    image, draw = page()
    draw.line((20, 10, 20, 140, 152, 140), fill=INK, width=2)
    points = [(20 + 11 * k, 130 - round(0.75 * k * k)) for k in range(13)]
    draw.line(points, fill=COLOURS[1], width=3)
    written(draw, (60, 143), "time (s)", 12)
    written(draw, (26, 8), "speed (m/s)", 12)
    return image


def receipt() -> Image.Image:
    image, draw = page()
    written(draw, (40, 6), "CORNER SHOP", 14)
    lines = (("Bread", "2.40"), ("Milk 1 l", "1.15"), ("Apples", "3.20"), ("Soap", "0.95"), ("TOTAL", "7.70"))
    for place, (what, price) in enumerate(lines):
        draw.line((10, 32 + 24 * place, 150, 32 + 24 * place), fill=(190, 190, 190))
        written(draw, (12, 36 + 24 * place), what)
        written(draw, (118, 36 + 24 * place), price)
    return image


def clock() -> Image.Image:
    image, draw = page((225, 235, 240))
    draw.ellipse((15, 15, 145, 145), fill=PAPER, outline=INK, width=4)
    for text, at in (("12", (72, 20)), ("3", (130, 72)), ("6", (76, 124)), ("9", (24, 72))):
        written(draw, at, text, 15)
    draw.line((80, 80, 80, 36), fill=INK, width=3)
    draw.line((80, 80, 110, 97), fill=INK, width=5)
    return image


def house() -> Image.Image:
    image, draw = page((150, 200, 235))
    draw.rectangle((0, 110, SIZE, SIZE), fill=(90, 160, 80))
    draw.rectangle((45, 70, 115, 130), fill=(225, 205, 170), outline=INK)
    draw.polygon((38, 70, 80, 35, 122, 70), fill=COLOURS[0], outline=INK)
    draw.rectangle((72, 98, 88, 130), fill=(110, 70, 40))
    draw.rectangle((52, 82, 66, 96), fill=COLOURS[3], outline=INK)
    draw.rectangle((94, 82, 108, 96), fill=COLOURS[3], outline=INK)
    draw.ellipse((120, 8, 148, 36), fill=(250, 220, 80))
    draw.rectangle((18, 95, 24, 125), fill=(110, 70, 40))
    draw.ellipse((4, 62, 38, 100), fill=(40, 120, 60))
    return image


def sign() -> Image.Image:
    image, draw = page((190, 205, 215))
    draw.rectangle((76, 90, 84, 160), fill=(120, 120, 120))
    draw.rectangle((18, 30, 142, 92), fill=(30, 90, 60), outline=PAPER, width=3)
    written(draw, (30, 38), "Harbour 4 km", 16, PAPER)
    written(draw, (30, 64), "Old Town 12 km", 15, PAPER)
    return image


def plan() -> Image.Image:
    image, draw = page((235, 230, 215))
    for place in (30, 75, 120):
        draw.rectangle((0, place, SIZE, place + 10), fill=(255, 255, 255))
        draw.rectangle((place + 8, 0, place + 18, SIZE), fill=(255, 255, 255))
    draw.polygon((0, 150, 60, 128, 110, 160, 0, 160), fill=(130, 180, 220))
    draw.rectangle((50, 42, 80, 72), fill=(140, 190, 120))
    written(draw, (54, 50), "Park", 11)
    draw.ellipse((100, 92, 112, 104), fill=COLOURS[0])
    written(draw, (114, 92), "Station", 11)
    return image


def crowd() -> Image.Image:
    image, draw = page()
    hand = random.Random(7)
    for _ in range(24):
        x, y, size = hand.randrange(10, 140), hand.randrange(10, 140), hand.randrange(6, 18)
        shape = hand.choice((draw.ellipse, draw.rectangle))
        shape((x - size // 2, y - size // 2, x + size // 2, y + size // 2), fill=hand.choice(COLOURS))
    return image


DRAWN = {"bars": bars, "curve": curve, "receipt": receipt, "clock": clock, "house": house, "sign": sign, "plan": plan,
         "crowd": crowd}  # fmt: skip


def main() -> None:
    for name, image in photographs().items():
        image.save(FOLDER / f"{name}.jpg", quality=QUALITY, optimize=True)
    for name, draw in DRAWN.items():
        draw().quantize(32).save(FOLDER / f"{name}.png", optimize=True)
    print(f"{sum(file.stat().st_size for file in FOLDER.iterdir())} bytes in {FOLDER}")


if __name__ == "__main__":
    main()
