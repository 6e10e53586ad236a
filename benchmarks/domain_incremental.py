"""Fixed against learned merging coefficients, where domains come one after another.

    python benchmarks/domain_incremental.py --seeds 3

SmolLM2-135M-Instruct (from the package index, as for `sculpt demo`) names the part of speech of a word in its sentence.
The domains are four genres of the Brown corpus; each has a LoRA adapter of its own on the last layers, trained on that
genre alone. They are merged by task arithmetic, TIES and DARE-TIES with one fixed weight of 1, 3 or 5 for all, as PEFT
defines it, and with coefficients that are learned on a buffer of a few samples a genre, b at most 1, 3 or 5.

Two tables, as in the source (Coleman, Quarantiello, Hurtado, Lomonaco): the mean accuracy over the four genres after
the last one, mean ± deviation over the seeds (of training order, buffer and DARE); and for one setting what is known
after each experience. Sentences of training, buffer and test come from different files.

All layers below the adapted ones are frozen in every run, so their output is computed once a sentence.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from incremental import add_options, run_merges, show
from sculpt.data.example import Example
from sculpt.data.tokens import tokenize
from sculpt.demo.brown import BROWN, parse, read_files, split_files
from sculpt.demo.fetch import fetch
from sculpt.demo.models import smollm2
from sculpt.fusion.cache import default_cache
from sculpt.fusion.checkpoint import Checkpoint, open_checkpoint
from sculpt.learn.buffer import BufferSample, batches
from sculpt.learn.training import predictions
from torch import Tensor, nn

DOMAINS = {"press": "abc", "learned": "j", "belles lettres": "g", "fiction": "klmnp"}
# The first letters of Brown's tags; ` noun` and so on are one token each for SmolLM2.
CLASSES = {
    "noun": ("nn", "np", "nr"),
    "verb": ("vb", "be", "hv", "do", "md"),
    "adjective": ("jj",),
    "adverb": ("rb", "ql", "wrb"),
    "pronoun": ("pp", "pn", "wp"),
    "preposition": ("in",),
    "article": ("at",),
    "conjunction": ("cc", "cs"),
}
MAX_WORDS = 10
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def class_of(tag: str) -> str | None:
    return next((name for name, starts in CLASSES.items() if tag.startswith(starts)), None)


def draw(files: dict[str, str], names: Sequence[str], genres: str, count: int, seed: int) -> list[tuple[str, str]]:
    """Return prompts with answers, the classes in equal parts."""
    generator = random.Random(seed)
    by_class: dict[str, list[str]] = {name: [] for name in CLASSES}
    for sentence in (s for name in sorted(names) if name[1] in genres for s in parse(files[name])):
        if not 4 <= len(sentence) <= MAX_WORDS:
            continue
        word, tag = sentence[generator.randrange(len(sentence))]
        name = class_of(tag)
        if name is not None and word.isalpha():
            text = " ".join(w for w, _ in sentence)
            by_class[name].append(f'{text}\nHere "{word}" is a kind of')
    found = []
    for name, prompts in by_class.items():
        generator.shuffle(prompts)
        found += [(prompt, f" {name}") for prompt in prompts[: -(-count // len(CLASSES))]]
    generator.shuffle(found)
    return found[:count]


def samples_of(tokenizer: Any, examples: Sequence[tuple[str, str]], domain: str) -> list[BufferSample]:
    found = [tokenize(tokenizer, prompt + answer, (len(prompt),)) for prompt, answer in examples]
    return [BufferSample(example=Example.of_tokens(one.ids, one.answers), domain=domain) for one in found]


class Passing(nn.Module):
    """Stands for a layer whose work is done."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


class Prefix(nn.Module):
    """Stands for the embeddings: returns what the frozen layers make of a row, computed once."""

    def __init__(self, known: dict[tuple[int, ...], Tensor]) -> None:
        super().__init__()
        self.known = known

    def forward(self, input_ids: Tensor) -> Tensor:
        rows = [self.known[key_of(row)] for row in input_ids]
        return nn.utils.rnn.pad_sequence([row.float() for row in rows], batch_first=True)


def key_of(row: Tensor) -> tuple[int, ...]:
    """Return a row's tokens without its padding, which is 0, a token that no sentence has."""
    ids = row.tolist()
    while ids[-1] == 0:
        ids.pop()
    return tuple(ids)


@torch.no_grad()
def run_prefix(model: Any, samples: Sequence[BufferSample], first: int) -> dict[tuple[int, ...], Tensor]:
    """Return the input of layer `first` for every sample."""
    caught: list[Tensor] = []
    handle = model.model.layers[first].register_forward_pre_hook(lambda _m, args: caught.append(args[0]))
    whole = model.model.layers
    model.model.layers = whole[: first + 1]
    known = {}
    ordered = sorted(samples, key=lambda sample: sample.example.length)
    for batch, _ in batches(ordered, 32):
        model.model(**batch.inputs, use_cache=False)
        for row, mask, hidden in zip(
            batch.inputs["input_ids"], batch.inputs["attention_mask"], caught.pop(), strict=True
        ):
            known[key_of(row)] = hidden[: int(mask.sum())].to(torch.float16)
    handle.remove()
    model.model.layers = whole
    return known


def shorten(model: Any, known: dict[tuple[int, ...], Tensor], first: int) -> None:
    """Let the model begin at layer `first`; its parameters keep their names."""
    model.model.embed_tokens = Prefix(known)
    for i in range(first):
        model.model.layers[i] = Passing()


def train_adapter(
    base: Path,
    known: dict[tuple[int, ...], Tensor],
    samples: Sequence[BufferSample],
    folder: Path,
    args: Any,
    seed: int,
) -> Path:
    """Train a LoRA on the last layers, AdamW with a linear decay, and save it."""
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    last = list(range(len(model.model.layers) - args.layers, len(model.model.layers)))
    shorten(model, known, last[0])
    config = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=LINEAR, layers_to_transform=last)
    tuned = get_peft_model(model, config)
    parameters = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=0.0)
    generator = random.Random(seed)
    for step in range(args.train_steps):
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * (1 - step / args.train_steps)
        ((batch, classes),) = batches(generator.sample(samples, args.batch), args.batch)
        logits, labels, _ = predictions(model, batch, classes)
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return folder


def run_seed(args: Any, seed: int, base: Path, data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train, merge in every way, and score; one seed."""
    opened = Checkpoint(base)
    generator = random.Random(seed)
    buffer = [s for d in DOMAINS for s in generator.sample(data["buffer"][d], args.buffer)]
    adapters = [
        open_checkpoint(
            train_adapter(base, data["known"], data["train"][d], folder / f"{seed}-{d}", args, seed), opened
        )
        for d in DOMAINS
    ]
    return run_merges(
        opened,
        adapters,
        buffer,
        data["test"],
        list(DOMAINS),
        args,
        seed,
        prepare=lambda model: shorten(model, data["known"], data["first"]),
        say=lambda text: print(f"seed {seed} {time.monotonic() - data['start']:6.0f} s  {text}", flush=True),
    )


def prepare(args: Any, base: Path, cache: Path) -> dict[str, Any]:
    """Draw the samples, and run the frozen layers over all of them."""
    import transformers

    files = read_files(fetch(BROWN, cache))
    split = split_files(files)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base, local_files_only=True)
    train, pool, test = {}, {}, []
    for domain, genres in DOMAINS.items():
        train[domain] = samples_of(tokenizer, draw(files, split["train"], genres, args.train, 1), domain)
        pool[domain] = samples_of(tokenizer, draw(files, split["validation"], genres, 4 * args.buffer, 2), domain)
        test += samples_of(tokenizer, draw(files, split["test"], genres, args.test, 3), domain)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    first = len(model.model.layers) - args.layers
    everything = [*(s for group in (*train.values(), *pool.values()) for s in group), *test]
    known = run_prefix(model.eval(), everything, first)
    return {"train": train, "buffer": pool, "test": test, "known": known, "first": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--layers", type=int, default=2, help="how many of the last layers are adapted")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--train", type=int, default=80, help="sentences a genre")
    parser.add_argument("--test", type=int, default=40)
    parser.add_argument("--buffer", type=int, default=4, help="sentences a genre")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--train-steps", type=int, default=25)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    start = time.monotonic()
    base = smollm2(default_cache())
    data = {**prepare(args, base, default_cache()), "start": start}
    print(f"frozen layers over {len(data['known'])} sentences: {time.monotonic() - start:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        results = [run_seed(args, seed, base, data, Path(folder)) for seed in range(args.seeds)]
    show(results, list(DOMAINS), "genres", args.json)


if __name__ == "__main__":
    main()
