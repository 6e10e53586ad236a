"""The commands that write, on models so small that each takes a moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "vocab_size": 8,
}
TIMES = ("fuse_seconds", "score_seconds", "seconds")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command in a folder.

    Attributes:
        prepare: Fills the folder.
        output: What it writes last.
        others: What it writes before.
        replaces: Whether there is an earlier output, of other options, that is to be replaced.
        older: Options of that one.
        slow: Whether it runs a model.
        long: Whether the short form leaves it out.
    """

    name: str
    prepare: Callable[[Path], None]
    argv: tuple[str, ...]
    output: str
    others: tuple[str, ...] = ()
    replaces: bool = False
    older: tuple[str, ...] = ()
    slow: bool = False
    long: bool = False
    ignored: tuple[str, ...] = field(default=())

    def command(self) -> list[str]:
        """Return the arguments."""
        return [*self.argv, *(["--overwrite"] if self.replaces else [])]


def told(files: dict[str, bytes | None]) -> dict[str, object]:
    """Return a tree without what depends on the clock."""
    found: dict[str, object] = {}
    for name, content in files.items():
        if content is not None and Path(name).name == "sweep.json":
            try:
                found[name] = _timeless(json.loads(content))
            except ValueError:  # lost with the power
                found[name] = content
        elif Path(name).suffix not in (".png", ".svg"):
            found[name] = content
    return found


def _timeless(content: object) -> object:
    if isinstance(content, dict):
        return {key: _timeless(value) for key, value in content.items() if key not in TIMES}
    return [_timeless(value) for value in content] if isinstance(content, list) else content


def two_models(folder: Path) -> None:
    """Write a base and a fine-tune of a few tensors, in two shards."""
    rng = np.random.default_rng(0)
    base = {f"model.layers.{k}.mlp.up_proj.weight": rng.standard_normal((24, 16)).astype(np.float32) for k in range(4)}
    for name, scale in (("base", 0.0), ("sft", 0.01)):
        (folder / name).mkdir(parents=True)
        moved = {key: (t + scale * rng.standard_normal(t.shape)).astype(np.float32) for key, t in base.items()}
        shards = list(moved.items())
        weight_map = {}
        for number, part in enumerate((shards[:2], shards[2:]), 1):
            file = f"model-{number:05d}-of-00002.safetensors"
            save_file(dict(part), folder / name / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(dict(part), file)
        (folder / name / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (folder / name / "config.json").write_text(json.dumps(CONFIG))


def adapters(folder: Path) -> None:
    """Write a base and two adapters of it."""
    two_models(folder)
    rng = np.random.default_rng(1)
    for name in ("one", "two"):
        (folder / name).mkdir()
        tensors = {}
        for k in range(4):
            key = f"base_model.model.model.layers.{k}.mlp.up_proj"
            tensors[f"{key}.lora_A.weight"] = rng.standard_normal((2, 16)).astype(np.float32)
            tensors[f"{key}.lora_B.weight"] = rng.standard_normal((24, 2)).astype(np.float32)
        save_file(tensors, folder / name / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up_proj"]}
        (folder / name / "adapter_config.json").write_text(json.dumps(config))


def statistics(folder: Path) -> None:
    """Write two files of statistics, with whole matrices."""
    from sculpt.fusion.arithmetic.curvature import Curvature
    from sculpt.hessian.store.diagonal import DiagonalHessian
    from sculpt.hessian.store.provenance import Provenance

    about = Provenance(
        model="sft", model_fingerprint="x", model_class="X", data="d", data_digest="", num_samples=1, num_tokens=1,
        max_length=1, seed=0, dtype="float32",
    )  # fmt: skip
    for number in (1, 2):
        gram = np.eye(8, dtype=np.float32) * number
        found = {f"w{k}": Curvature(terms=(np.full((1, 8), 1.0 * k),), num_tokens=3, gram=gram) for k in range(3)}
        DiagonalHessian(curvatures=found, provenance=about).save(folder / f"h{number}.safetensors")


def patched(folder: Path) -> None:
    """Write a base, its fine-tune and a patch."""
    import sculpt

    two_models(folder)
    sculpt.pack(folder / "base", folder / "sft", output=folder / "p.safetensors")


def fused(folder: Path) -> None:
    """Write a fused model, to be reported on."""
    import sculpt

    two_models(folder)
    sculpt.fuse(folder / "base", folder / "sft", output=folder / "fused", calibration=False)


def language_model(folder: Path) -> None:
    """Write a tiny Llama, its fine-tune, data and a suite."""
    import torch

    from ..training import tiny

    folder.mkdir(parents=True, exist_ok=True)
    for name, strength in (("base", 0.0), ("sft", 0.05)):
        model = tiny.llama()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += strength * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        model.save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    tiny.sentences(folder / "rows.jsonl", 6)
    tiny.write_rows(folder / "quiz.jsonl", {"prompt": "a b", "choices": [" c", " d"], "answer": 0})
    tiny.write_rows(folder / "prose.jsonl", {"text": "a b c d"}, {"text": "e f g"})
    (folder / "suite.yaml").write_text(
        "pretrained:\n  prose: {scorer: perplexity, file: prose.jsonl}\n"
        "target:\n  quiz: {scorer: multiple-choice, file: quiz.jsonl}\n"
    )


def wide_model(folder: Path) -> None:
    """Write a Llama whose layers are wide enough for blocks of FP8, and its fine-tune."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))
    for name, strength in (("base", 0.0), ("sft", 0.05)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += strength * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        model.save_pretrained(folder / name)


def recipes(folder: Path) -> None:
    """Write two models and a file of two recipes, of which one uses the other's result."""
    two_models(folder)
    (folder / "r.yaml").write_text(
        "name: half\nmethod: task-arithmetic\nbase: base\nmodels: [{model: sft}]\noptions: {scale: 0.5}\n---\n"
        "method: task-arithmetic\nbase: base\nmodels: [{model: half}, {model: sft}]\noptions: {scale: 0.5}\n"
    )


def rows(folder: Path) -> None:
    """Write samples, and scores from elsewhere."""
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text('{"text": "a b"}\n')
    (folder / "s.csv").write_text("model,a,b\nx,1,2\n")


PLAIN = ("--threads", "1")
CASES = [
    Case(
        name="fuse",
        prepare=two_models,
        argv=("fuse", "base", "sft", "--no-calibration", *PLAIN, "-o", "o/x"),
        output="o/x",
    ),
    Case(
        name="fuse --overwrite",
        prepare=two_models,
        argv=("fuse", "base", "sft", "--no-calibration", *PLAIN, "-o", "o/x"),
        output="o/x",
        replaces=True,
        older=("--gamma", "0.2"),
    ),
    Case(name="ties", prepare=two_models, argv=("ties", "base", "sft", *PLAIN, "-o", "o"), output="o"),
    Case(
        name="lora-merge",
        prepare=adapters,
        argv=("lora-merge", "base", "one", "two", "--as-adapter", "--method", "cat", "-o", "o/x"),
        output="o/x",
    ),
    Case(
        name="lora-merge --overwrite",
        prepare=adapters,
        argv=("lora-merge", "base", "one", "two", "--as-adapter", "--method", "cat", "-o", "o/x"),
        output="o/x",
        replaces=True,
        older=("--weights", "0.5"),
    ),
    Case(name="lora-prune", prepare=adapters, argv=("lora-prune", "one", "--density", "0.5", "-o", "o"), output="o"),
    Case(
        name="lora-extract",
        prepare=two_models,
        argv=("lora-extract", "base", "sft", "--rank", "2", "-o", "o"),
        output="o",
    ),
    Case(
        name="hessian merge",
        prepare=statistics,
        argv=("hessian", "merge", "h1.safetensors", "h2.safetensors", "-o", "o.safetensors"),
        output="o.safetensors",
    ),
    Case(
        name="hessian merge --overwrite",
        prepare=statistics,
        argv=("hessian", "merge", "h1.safetensors", "h2.safetensors", "-o", "h.safetensors"),
        output="h.safetensors",
        replaces=True,
        older=(),
    ),
    Case(name="pack", prepare=two_models, argv=("pack", "base", "sft", "-o", "o.safetensors"), output="o.safetensors"),
    Case(
        name="fuse --emit patch --overwrite",
        prepare=two_models,
        argv=("fuse", "base", "sft", "--no-calibration", *PLAIN, "--emit", "patch", "-o", "o.safetensors"),
        output="o.safetensors",
        replaces=True,
        older=("--gamma", "0.2"),
    ),
    Case(name="apply", prepare=patched, argv=("apply", "base", "p.safetensors", "-o", "o/x"), output="o/x"),
    Case(
        name="merge of two recipes",
        prepare=recipes,
        argv=("merge", "r.yaml", *PLAIN, "-o", "o"),
        output="o",
        others=("o-parts/half",),
    ),
    Case(
        name="attest",
        prepare=fused,
        argv=("attest", "fused"),
        output="fused/sculpt-provenance.json",
        others=("fused/sculpt-sbom.json",),
    ),
    Case(
        name="suite init",
        prepare=rows,
        argv=("suite", "init", "rows.jsonl", "-o", "o.yaml"),
        output="o.yaml",
        others=("o-general.jsonl",),
    ),
    Case(
        name="scores --overwrite",
        prepare=rows,
        argv=("scores", "s.csv", "--target", "a", "-o", "o.tex"),
        output="o.tex",
        replaces=True,
    ),
    Case(name="report", prepare=fused, argv=("report", "fused", "-o", "o.html"), output="o.html"),
    Case(
        name="report --overwrite",
        prepare=fused,
        argv=("report", "fused", "-o", "o.html"),
        output="o.html",
        replaces=True,
        older=(),
    ),
    Case(
        name="calibrate",
        prepare=language_model,
        argv=("calibrate", "sft", "--data", "prose.jsonl", "--samples", "3", "-o", "h.safetensors"),
        output="h.safetensors",
        slow=True,
    ),
    Case(
        name="calibrate --full",
        prepare=language_model,
        argv=(
            "calibrate",
            "sft",
            "--data",
            "rows.jsonl",
            "--samples",
            "3",
            "--full",
            "*",
            "--memory",
            "1kB",
            "-o",
            "h.safetensors",
        ),
        output="h.safetensors",
        slow=True,
    ),
    Case(
        name="fuse --data",
        prepare=language_model,
        argv=("fuse", "base", "sft", "--data", "prose.jsonl", "--samples", "3", *PLAIN, "-o", "o"),
        output="o",
        slow=True,
    ),
    Case(
        name="sweep",
        prepare=language_model,
        argv=(
            "sweep",
            "base",
            "sft",
            "--suite",
            "suite.yaml",
            "--no-calibration",
            "--gamma",
            "0.5,1",
            "--device",
            "cpu",
            *PLAIN,
            "--pick",
            "avg",
            "-o",
            "o",
        ),
        output="o",
        slow=True,
    ),
    Case(
        name="repair",
        prepare=language_model,
        argv=("repair", "base", "sft", "--data", "rows.jsonl", "--protect", "prose.jsonl", *PLAIN, "-o", "o"),
        output="o-report.html",
        others=("o",),
        slow=True,
    ),
    Case(
        name="repair --suite",
        prepare=language_model,
        argv=(
            "repair",
            "base",
            "sft",
            "--suite",
            "suite.yaml",
            "--protect",
            "prose.jsonl",
            "--protect-weight",
            "0.1,1",
            "--pick",
            "avg",
            *PLAIN,
            "-o",
            "o",
        ),
        output="o-report.html",
        others=("o", "o-sweep"),
        slow=True,
        long=True,
    ),
    Case(
        name="fuse --output-format",
        prepare=wide_model,
        argv=("fuse", "base", "sft", "--no-calibration", "--output-format", "fp8", *PLAIN, "-o", "o"),
        output="o",
        slow=True,
        long=True,
    ),
    Case(
        name="lora-train",
        prepare=language_model,
        argv=(
            "lora-train",
            "base",
            "--data",
            "rows.jsonl",
            "--method",
            "lora",
            "--rank",
            "2",
            "--max-steps",
            "4",
            "--save-steps",
            "2",
            "--batch-size",
            "2",
            "-o",
            "o",
        ),
        output="o",
        slow=True,
    ),
]
