"""Calibration block by block against `from_pretrained` with hooks: peak memory, bytes read, wall time.

    python benchmarks/calibrate.py --parameters 1.1B --samples 8 64 --length 128

A random Llama of the given size is written in bfloat16, once, and each way runs in a process of its own, in float32
on the CPU. Memory is the peak of the resident set above what it was with all libraries imported; where the kernel
tells it, pages of the mapped checkpoint are left out, as they are the page cache's. "hooks" is the plain loop: the
whole model, a forward pre-hook on each Linear that adds up x² in float64, one sample after the other. "full" is sculpt
with Σx·xᵀ of every matrix, "forward" the whole model's plain forward and nothing else; all but the hooks put up to
4,096 tokens together. What matters is how much more than the forward the sums take. "llm-compressor", in an environment
of its own (`--llm-compressor its/bin/python`), is its sequential pipeline with SparseGPT's hooks, which add up Σx·xᵀ of
every Linear but the head; nothing is pruned. "full" is to be compared with it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SIZES = {
    "15M": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 12, "num_attention_heads": 8},
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
    "1.1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
}
HEADS = {"15M": 4, "135M": 3, "1.1B": 4}
VOCAB = {"15M": 8000, "135M": 32000, "1.1B": 32000}
MIB = 1 << 20
BATCH_TOKENS = 4096


def make_model(folder: Path, size: str) -> None:
    import torch
    import transformers

    config = transformers.LlamaConfig(
        **SIZES[size],
        num_key_value_heads=HEADS[size],
        vocab_size=VOCAB[size],
        max_position_embeddings=2048,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


def make_data(file: Path, size: str, samples: int, length: int) -> None:
    import random

    draw = random.Random(0)
    rows = ({"input_ids": [draw.randrange(3, VOCAB[size]) for _ in range(length)]} for _ in range(samples))
    file.write_text("\n".join(map(json.dumps, rows)))


def anonymous_bytes() -> int:
    """Return resident memory that is not a mapped file; all of it where the kernel does not tell them apart."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["RssAnon"].split()[0]) * 1024
    except (OSError, KeyError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class PeakMemory(threading.Thread):
    """Samples memory every few milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.base = self.peak = anonymous_bytes()
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.005):
            self.peak = max(self.peak, anonymous_bytes())


def run_sculpt(
    model: Path, data: Path, samples: int, memory: int | None, full: tuple[str, ...] = ()
) -> dict[str, float]:
    from sculpt.hessian import CalibrationOptions
    from sculpt.hessian.session import Session

    options = CalibrationOptions(
        data=data,
        samples=samples,
        max_length=2048,
        device="cpu",
        memory=memory,
        batch_tokens=BATCH_TOKENS,
        full=full,
    )
    with Session(model, options) as session:
        tensors = sum(len(block) for block in session.blocks())
        return {
            "tensors": tensors,
            "weight_bytes_read": session.weights.bytes_read,
            "checkpoint_bytes": session.checkpoint.nbytes,
            "activation_peak_mib": round(session.activations.peak_bytes / MIB),
            "spilled_mib": round(session.activations.bytes_spilled / MIB),
        }


def run_hooks(model: Path, data: Path, samples: int, memory: int | None) -> dict[str, float]:
    import torch
    import transformers

    del memory
    whole = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True).eval()
    sums: dict[str, torch.Tensor] = {}

    def hook(name: str):
        def add(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).double()
            sums[name] = sums.get(name, 0) + x.square().sum(0)

        return add

    for name, module in whole.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(hook(name))
    rows = [json.loads(line)["input_ids"] for line in data.read_text().splitlines()][:samples]
    with torch.no_grad():
        for row in rows:
            whole(input_ids=torch.tensor([row]), use_cache=False)
    return {"tensors": len(sums)}


def run_full(model: Path, data: Path, samples: int, memory: int | None) -> dict[str, float]:
    return run_sculpt(model, data, samples, memory, ("*",))


def run_forward(model: Path, data: Path, samples: int, memory: int | None) -> dict[str, float]:
    import torch
    import transformers

    del memory
    whole = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True).eval()
    rows = torch.tensor([json.loads(line)["input_ids"] for line in data.read_text().splitlines()][:samples])
    start = time.process_time()
    with torch.inference_mode():
        for part in rows.split(max(1, BATCH_TOKENS // rows.shape[1])):
            whole.model(input_ids=part, use_cache=False)
    return {"forward_cpu_seconds": round(time.process_time() - start, 1)}


def run_llmcompressor(model: Path, data: Path, samples: int, memory: int | None) -> dict[str, float]:
    import torch
    import transformers
    from llmcompressor import oneshot  # pyright: ignore[reportMissingImports]
    from llmcompressor.modifiers.pruning import SparseGPTModifier  # pyright: ignore[reportMissingImports]
    from tokenizers import Tokenizer, models

    del memory
    shapes: list[tuple[int, ...]] = []

    class Collecting(SparseGPTModifier):
        def compress_modules(self) -> None:
            for module in list(self._num_samples):
                shapes.append(tuple(self._hessians.pop(module).shape))
                del self._num_samples[module]

    whole = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True).eval()
    rows = torch.tensor([json.loads(line)["input_ids"] for line in data.read_text().splitlines()][:samples])
    batches = [{"input_ids": part} for part in rows.split(max(1, BATCH_TOKENS // rows.shape[1]))]
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))  # it wants one, and has no use for it
    oneshot(
        model=whole,
        processor=transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<unk>"),
        dataset=torch.utils.data.DataLoader(batches, batch_size=None),
        recipe=[Collecting(sparsity=0.5, targets=["Linear"], ignore=["re:.*lm_head"])],
        pipeline="sequential",
    )
    return {"tensors": len(shapes)}


PEER = "llm-compressor"
WAYS = {"sculpt": run_sculpt, "full": run_full, "forward": run_forward, "hooks": run_hooks, PEER: run_llmcompressor}


def child(way: str, model: Path, data: Path, samples: int, memory: int | None) -> None:
    import torch  # noqa: F401
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.LlamaForCausalLM  # noqa: B018 (imports the module)
    peak = PeakMemory()
    peak.start()
    start, started_cpu = time.perf_counter(), time.process_time()
    found = WAYS[way](model, data, samples, memory)
    seconds, cpu = time.perf_counter() - start, time.process_time() - started_cpu
    peak.ended.set()
    memory_mib = (peak.peak - peak.base) / MIB
    print(
        json.dumps(
            {
                "way": way,
                "samples": samples,
                "seconds": round(seconds, 1),
                "cpu_seconds": round(cpu, 1),
                "mib": round(memory_mib),
                **found,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", choices=SIZES, default="135M")
    parser.add_argument("--samples", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--memory-mib", type=int, help="budget for activations between blocks")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[way for way in WAYS if way != PEER])
    parser.add_argument("--llm-compressor", type=Path, help="Python of an environment that has it: adds that way")
    parser.add_argument("--keep", type=Path, help="folder to make the model in and keep it")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        way, model, data, samples, memory = args.child
        child(way, Path(model), Path(data), int(samples), int(memory) if memory != "none" else None)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        model, data = folder / f"llama-{args.parameters}", Path(scratch) / "data.jsonl"
        if not model.exists():
            make_model(model, args.parameters)
        memory = str(args.memory_mib * MIB) if args.memory_mib is not None else "none"
        for samples in args.samples:
            make_data(data, args.parameters, samples, args.length)
            for way in [*args.ways, *([PEER] if args.llm_compressor and PEER not in args.ways else [])]:
                python = str(args.llm_compressor) if way == PEER and args.llm_compressor else sys.executable
                command = [python, __file__, "--child", way, str(model), str(data), str(samples), memory]
                done = subprocess.run(
                    command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
                )
                if done.returncode:
                    sys.exit(done.stderr)
                print(done.stdout.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
