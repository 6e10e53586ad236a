"""Every reader of what others wrote, with seeds, a way to change them, and what it may answer: a value, or an error.

A reader is given bytes, puts them where it reads from, and reads all that a command would. `SculptError` is an answer;
anything else that leaves it is a fault.
"""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from sculpt.data.encoding import Encoder
from sculpt.data.rows import open_rows
from sculpt.demo.tiny import byte_tokenizer
from sculpt.evaluate import scored
from sculpt.evaluate.answers import as_chat, read_prompts, told
from sculpt.evaluate.given_scores import read_lines, scores_from_table
from sculpt.evaluate.report import make_report
from sculpt.evaluate.starter import write_suite
from sculpt.evaluate.suite import read_suite
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.checkpoint import Checkpoint, open_checkpoint
from sculpt.fusion.checkpoint.gguf.blocks import decode
from sculpt.fusion.checkpoint.gguf.file import GgufFile
from sculpt.fusion.checkpoint.safetensors_file import SafetensorsFile
from sculpt.fusion.dtypes import DTYPES
from sculpt.fusion.errors import SculptError
from sculpt.fusion.file_kinds import MANIFEST
from sculpt.fusion.methods import METHODS, Method
from sculpt.fusion.patch.apply import unpack
from sculpt.fusion.patch.pack import pack
from sculpt.fusion.patch.source import PatchedSource
from sculpt.fusion.plan.options import Policies
from sculpt.fusion.recipe.prepare import prepare_recipe
from sculpt.fusion.recipe.read import read_recipes
from sculpt.fusion.record.manifest import Manifest, digest_of
from sculpt.fusion.record.records import TensorRecord
from sculpt.fusion.record.verify import verify
from sculpt.fusion.ref import with_patches
from sculpt.fusion.run.fuse import execute
from sculpt.fusion.run.prepared import prepare
from sculpt.fusion.run.settings import Settings
from sculpt.hessian import DiagonalHessian, Provenance
from sculpt.live.skeleton import build

from .mutate import Change, as_json, changed_bytes, changed_json, changed_value

DTYPES_BY_NAME = {dtype.torch: dtype.numpy for dtype in DTYPES.values() if dtype.fusible}
DEPTH = 3  # rows of a data file that are looked at


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """One reader.

    Attributes:
        read: Reads bytes in an empty folder of its own.
        seeds: Bytes that it accepts.
        change: Makes others of them.
        cost: Milliseconds for one, about; the short form tries as many as fit a second or two.
    """

    name: str
    read: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]
    change: Change
    cost: int


class Home:
    """Tiny models that readers read beside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base, self.sft = folder / "base", folder / "sft"
        rng = np.random.default_rng(0)
        shapes = {"model.embed_tokens.weight": (9, 4), "model.norm.weight": (4,)}
        shapes |= {f"model.layers.{k}.mlp.up_proj.weight": (6, 4) for k in range(2)}
        for path in (self.base, self.sft):
            path.mkdir()
            tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
            save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
            (path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')

    @cached_property
    def fused(self) -> Path:
        out = self.folder / "fused"
        execute(prepare(self.base, [self.sft], output=out, method=METHODS["ties"]()))
        return out

    @cached_property
    def model(self) -> Path:
        """A model that runs, with a tokenizer and a chat template."""
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = byte_tokenizer()
        tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(self.folder / "model")
        tokenizer.save_pretrained(self.folder / "model")
        return self.folder / "model"

    @cached_property
    def encoder(self) -> Encoder:
        from transformers import LlamaForCausalLM

        return Encoder(self.model, LlamaForCausalLM.from_pretrained(self.model), max_length=32)


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _headers() -> list[bytes]:
    def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
        return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}

    found = [
        {"a": entry("F32", [2, 2], 0, 16), "b.weight": entry("BF16", [3], 16, 22), "__metadata__": {"format": "pt"}},
        {"a": entry("I64", [], 0, 8), "c": entry("F4", [4], 8, 10), "d": entry("U8", [0, 5], 10, 10)},
        {},
    ]
    return [
        with_header(
            as_json(header), b"\0" * 22 if len(header) == 3 and "b.weight" in header else b"\0" * 10 if header else b""
        )
        for header in found
    ]


def _changed_header(data: bytes, rng: Any) -> bytes:
    if rng.random() < 0.3 or len(data) < 8:
        return changed_bytes(data, rng)
    size = struct.unpack("<Q", data[:8])[0]
    return with_header(changed_json(data[8 : 8 + size], rng), data[8 + size :])


def _twice(data: bytes) -> bool:
    """Return whether a header has a key twice, which alone is refused here and accepted by the library."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in found}) < len(found):
            raise KeyError
        return dict(found)

    try:
        json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]], object_pairs_hook=pairs)
    except KeyError:
        return True
    except (ValueError, RecursionError, struct.error):
        pass
    return False


def read_header(data: bytes, folder: Path) -> None:
    """Read as the library does: what one accepts the other must."""
    file = folder / "model.safetensors"
    file.write_bytes(data)
    try:
        opened = SafetensorsFile(file)
        for name, info in opened.tensors.items():
            if info.kind.numpy is not None:
                opened.read(name)
        error = None
    except SculptError as found:
        error = found
    try:
        with safe_open(file, "np") as reference:
            names = set(reference.keys())
    except (SafetensorError, OSError):
        assert error is not None, "the library refuses it"
        raise error from None
    if error is None:
        assert set(opened.tensors) == names, "the library has other tensors"
    elif not _twice(data):
        raise AssertionError(f"the library accepts it: {error.message}")
    else:
        raise error


def readers(home: Home) -> Iterator[Reader]:
    """Yield every reader."""
    yield Reader(name="header", read=read_header, seeds=_headers, change=_changed_header, cost=3)

    def read_index(data: bytes, folder: Path) -> None:
        save_file({"a": np.zeros(2, np.float32)}, folder / "x-1.safetensors")
        save_file({"b": np.zeros(2, np.float32)}, folder / "x-2.safetensors")
        (folder / "model.safetensors.index.json").write_bytes(data)
        opened = Checkpoint(folder)
        _ = [opened.read(name) for name in opened.tensors], opened.fingerprint, opened.companions()

    index = {"metadata": {"total_size": 16}, "weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}
    yield Reader(name="index", read=read_index, seeds=lambda: [as_json(index)], change=changed_json, cost=3)

    def read_adapter(data: bytes, folder: Path) -> None:
        key = "base_model.model.model.layers.0.mlp.up_proj"
        tensors = {
            f"{key}.lora_A.weight": np.zeros((2, 4), np.float32),
            f"{key}.lora_B.weight": np.ones((6, 2), np.float32),
        }
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_bytes(data)
        opened = open_checkpoint(folder, home.base)
        _ = [opened.read(name) for name in opened.tensors], opened.fingerprint

    adapter = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"], "rank_pattern": {"up_proj": 2},
        "alpha_pattern": {"layers.1.*": 8}, "use_rslora": False, "use_dora": False, "fan_in_fan_out": False,
        "modules_to_save": None, "bias": "none", "base_model_name_or_path": "base", "revision": None,
        "init_lora_weights": True, "target_parameters": None,
    }  # fmt: skip
    yield Reader(name="adapter", read=read_adapter, seeds=lambda: [as_json(adapter)], change=changed_json, cost=3)

    yield Reader(name="hessian", read=_read_hessian, seeds=lambda: [_hessian(home)], change=_changed_hessian, cost=4)

    def read_manifest(data: bytes, folder: Path) -> None:
        try:  # a forger knows how to make the digest
            content = json.loads(data)
            content.pop("digest", None)
            data = as_json({**content, "digest": digest_of(content)})
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            pass
        for file in home.fused.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / MANIFEST).write_bytes(data)
        Manifest.read(folder)
        make_report(folder)
        verify(folder, [home.base, home.sft])

    def manifests() -> list[bytes]:
        return [(home.fused / MANIFEST).read_bytes()]

    yield Reader(name="manifest", read=read_manifest, seeds=manifests, change=changed_json, cost=12)

    def read_record(data: bytes, folder: Path) -> None:
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            return
        TensorRecord.from_json(content)

    def records() -> list[bytes]:
        return [as_json(record.as_json()) for record in Manifest.read(home.fused).tensors]

    yield Reader(name="record", read=read_record, seeds=records, change=changed_json, cost=1)

    def read_recipe(data: bytes, folder: Path) -> None:
        file = folder / "recipe.yaml"
        file.write_bytes(data)
        for recipe in read_recipes(file):
            prepare_recipe(recipe, output=folder / "out", near=home.folder)

    yield Reader(name="recipe", read=read_recipe, seeds=_recipes, change=_changed_yaml, cost=8)

    def read_a_suite(data: bytes, folder: Path) -> None:
        file = folder / "suite.yaml"
        file.write_bytes(data)
        read_suite(file).measures()

    yield Reader(name="suite", read=read_a_suite, seeds=_suites, change=_changed_yaml, cost=40)

    def read_torch(data: bytes, folder: Path) -> None:
        (folder / "pytorch_model.bin").write_bytes(data)
        opened = Checkpoint(folder)
        _ = [opened.read(name, 0, 4) for name in opened.tensors]

    yield Reader(name="torch", read=read_torch, seeds=_torch_files, change=changed_bytes, cost=6)

    def read_rows(data: bytes, folder: Path) -> None:
        file = folder / "rows.jsonl"
        file.write_bytes(data)
        for number, row in enumerate(open_rows(file)):
            if number == DEPTH:
                break
            for use in (home.encoder.examples, home.encoder.labelled, lambda row: home.encoder.prompt(row, room=4)):
                try:
                    use(row)
                except SculptError:
                    continue

    yield Reader(name="rows", read=read_rows, seeds=_rows, change=changed_json, cost=4)

    def read_config(data: bytes, folder: Path) -> None:
        (folder / "model.safetensors").symlink_to(home.model / "model.safetensors")
        (folder / "config.json").write_bytes(data)
        options = {"dtype": torch.float32, "device": torch.device("cpu"), "seed": 0, "trust_remote_code": False}
        build(Checkpoint(folder), auto_class=None, **options)

    def configs() -> list[bytes]:
        return [(home.model / "config.json").read_bytes()]

    yield Reader(name="config", read=read_config, seeds=configs, change=changed_json, cost=18)

    def read_state(data: bytes, folder: Path) -> None:
        import pyarrow

        table = pyarrow.table({"text": ["a", "b"]})
        with (
            pyarrow.OSFile(str(folder / "data.arrow"), "wb") as sink,
            pyarrow.ipc.new_stream(sink, table.schema) as out,
        ):
            out.write_table(table)
        (folder / "state.json").write_bytes(data)
        open_rows(folder).row(0)

    state = {"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "x", "_indices_files": None}
    yield Reader(name="state", read=read_state, seeds=lambda: [as_json(state)], change=changed_json, cost=4)

    def read_scores(data: bytes, folder: Path) -> None:
        (folder / "scores.json").write_bytes(data)
        scored.read_scores([folder / "scores.json"])

    scores = {"model": "m", "measures": {"prose": 50.0, "target": 1}}
    yield Reader(name="scores", read=read_scores, seeds=lambda: [as_json(scores)], change=changed_json, cost=2)

    def read_given(data: bytes, folder: Path) -> None:
        file = folder / "given.csv"
        file.write_bytes(data)
        table, _ = scores_from_table(read_lines(file), ["flickr"], source=file.name)
        _ = table.csv(), table.markdown(), table.latex()

    def given() -> list[bytes]:
        return [
            b"model,vqa,flickr\nbase,143.0,57.26\nsft,1e2,0\n",
            b'\xef\xbb\xbfm,"a, b",flickr\r\n\r\n"x ""y""",1,2\r\n',
        ]

    yield Reader(name="given", read=read_given, seeds=given, change=changed_bytes, cost=1)

    def read_the_prompts(data: bytes, folder: Path) -> None:
        file = folder / "prompts.jsonl"
        file.write_bytes(data)
        for row in read_prompts(file, limit=DEPTH):
            for each in (row, as_chat(row)):
                home.encoder.prompt(each, room=4)
                told(each)

    def prompts() -> list[bytes]:
        chat = [{"role": "user", "content": "a"}]
        parts = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
        return [as_json({"prompt": prompt}) for prompt in ("The capital is", chat, parts)]

    yield Reader(name="prompts", read=read_the_prompts, seeds=prompts, change=changed_json, cost=4)

    def read_samples(data: bytes, folder: Path) -> None:
        """Write a suite for rows: what is written must be read as one."""
        (folder / "rows.jsonl").write_bytes(data)
        write_suite(folder / "suite.yaml", folder / "rows.jsonl", None, limit=2)
        read_suite(folder / "suite.yaml").measures()

    def samples() -> list[bytes]:
        rows = ({"text": "a"}, {"prompt": "a", "answer": "b"}, {"question": "a", "choices": ["b", "c"], "answer": 0})
        return [as_json(row) for row in rows]

    yield Reader(name="samples", read=read_samples, seeds=samples, change=changed_json, cost=8)

    yield Reader(name="options", read=_read_options, seeds=_options, change=changed_json, cost=2)

    def read_names(data: bytes, folder: Path) -> None:
        """Fuse tensors of any names: what is written must be opened by the library."""
        names = dict.fromkeys(data.decode("utf-8", "replace").split("\n"))
        tensors = {name: np.full((2, 3), 1.0, np.float32) for name in names if name != "__metadata__"}
        for number, side in enumerate(("base", "sft")):
            (folder / side).mkdir()
            save_file({name: value + number for name, value in tensors.items()}, folder / side / "model.safetensors")
        output = folder / "out"
        execute(prepare(folder / "base", [folder / "sft"], output=output, method=METHODS["ties"]()))
        make_report(output)
        with safe_open(output / "model.safetensors", "np") as opened:
            assert set(opened.keys()) == set(tensors)

    yield Reader(name="names", read=read_names, seeds=_names, change=changed_bytes, cost=100)

    def patches() -> list[bytes]:
        found = [home.folder / "packed.safetensors", home.folder / "emitted.safetensors"]
        if not found[1].exists():
            pack(home.base, home.sft, output=found[0])
            settings = Settings(emit="patch")
            method = METHODS["adadare"](sparsity=0.5)
            execute(prepare(home.base, [home.sft], output=found[1], method=method, settings=settings))
        return [file.read_bytes() for file in found]

    def read_patch(data: bytes, folder: Path) -> None:
        file = folder / "p.safetensors"
        file.write_bytes(data)
        for strength in (None, 0.5):
            opened = PatchedSource(with_patches(home.base, [file]), strength=strength)
            _ = [opened.read(name) for name in opened.tensors], opened.fingerprint, opened.companions()
        unpack(with_patches(home.base, [file]), output=folder / "out")

    yield Reader(name="patch", read=read_patch, seeds=patches, change=_changed_patch, cost=40)

    yield Reader(name="numbers", read=_read_numbers, seeds=_numbers, change=_changed_numbers, cost=40)
    yield Reader(name="gguf", read=_read_gguf, seeds=_gguf_files, change=_changed_gguf, cost=1)


@dataclass
class PatchParts:
    """A patch taken apart, to be put together as a forger would, who makes the digests fit."""

    metadata: dict[str, str]
    parts: dict[str, bytes]
    contents: Any

    @classmethod
    def of(cls, data: bytes) -> PatchParts:
        size = struct.unpack("<Q", data[:8])[0]
        header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
        metadata = header.pop("__metadata__")
        parts = {name: body[slice(*entry["data_offsets"])] for name, entry in header.items()}
        return cls(metadata, parts, json.loads(zlib.decompress(parts["contents"])))

    def joined(self) -> bytes:
        for name, tensor in self.contents["tensors"].items():
            tensor["code"] = xxhash.xxh3_128_hexdigest(self.parts[f"tensor/{name}"])
        return self.with_text(json.dumps(self.contents).encode())

    def with_text(self, text: bytes) -> bytes:
        self.parts["contents"], at, header = zlib.compress(text), 0, {}
        for name, content in self.parts.items():
            header[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": [at, at := at + len(content)]}
        digest = xxhash.xxh3_128_hexdigest(self.parts["contents"])
        metadata = {**self.metadata, "contents_bytes": str(len(text)), "contents_digest": digest}
        return with_header(as_json({"__metadata__": metadata, **header}), b"".join(self.parts.values()))


def _changed_patch(data: bytes, rng: Any) -> bytes:
    """Change a patch's contents or its code."""
    try:
        patch, what = PatchParts.of(data), rng.random()
        if what < 0.15:
            return changed_bytes(data, rng)
        if what < 0.55:
            patch.contents = changed_value(patch.contents, rng)
        else:
            name = rng.choice([name for name in patch.parts if name != "contents"])
            patch.parts[name] = changed_bytes(patch.parts[name], rng)
        return patch.joined()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error, zlib.error):
        return changed_bytes(data, rng)


SPECIAL = (
    *(0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-40, -1e-40, 1e-45, 65504.0, 3e38, -3e38, 1.0, 1e-8),
)


def _numbers() -> list[bytes]:
    values = [
        [[0.5, -1.0, 2.0], [0.0, 1.0, 3.0]],
        [[0.25, -1.0, 2.5], [0.0, 1.5, 3.0]],
        [[0.5, 1.0, 2.0], [9.0, 1.0, 3.0]],
    ]
    kinds = ("float32", "float16", "bfloat16", "float64")
    return [
        as_json({"method": name, "dtype": kind, "values": values, "keep": keep})
        for name, found in METHODS.items()
        if not found.protects  # which is refused without what protects
        for kind, keep in ((kinds[len(name) % 4], False), (kinds[(len(name) + 1) % 4], True))
    ]


def _changed_numbers(data: bytes, rng: Any) -> bytes:
    content = json.loads(data)
    for model in content["values"]:
        for row in model:
            for place in range(len(row)):
                if rng.random() < 0.4:
                    row[place] = rng.choice(SPECIAL)
    return as_json(content)


def _read_numbers(data: bytes, folder: Path) -> None:
    """Fuse special values: of finite inputs no infinite ones are written."""
    content = json.loads(data)
    method, kind = METHODS[content["method"]], DTYPES_BY_NAME[content["dtype"]]
    least, most = method().model_range
    count = least if most is not None else 2
    with np.errstate(all="ignore"):
        arrays = [np.array(rows, np.float64).astype(kind) for rows in content["values"]]
    for number, array in enumerate(arrays):
        (folder / str(number)).mkdir()
        save_file({"model.layers.0.w": array, "v": array[0]}, folder / str(number) / "model.safetensors")
    policies = Policies(on_nonfinite="keep" if content["keep"] else "error")
    tuned = [folder / str(1 + number) for number in range(count)]
    execute(prepare(folder / "0", tuned, output=folder / "out", method=method(), settings=Settings(policies=policies)))
    opened = Checkpoint(folder / "out")
    if not content["keep"]:
        assert all(np.isfinite(opened.read(name).astype(np.float64)).all() for name in opened.tensors), "infinite"


def _gguf_files() -> list[bytes]:
    """Return a file of each kind of value and of several kinds of blocks; no model of any architecture."""
    import gguf

    with tempfile.TemporaryDirectory() as folder:
        writer = gguf.GGUFWriter(f"{folder}/a.gguf", "llama")
        writer.add_uint32("llama.block_count", 1)
        writer.add_float32("llama.rope.freq_base", 1e4)
        writer.add_token_list(["a", "é", ""])
        writer.add_array("numbers", [1, 2, 3])
        writer.add_bool("yes", True)
        writer.add_tensor("w", np.ones((2, 32), np.float32))
        for kind in (gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0):
            writer.add_tensor(kind.name, gguf.quants.quantize(np.ones((3, 64), np.float32), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return [Path(folder, "a.gguf").read_bytes(), b"GGUF\3\0\0\0" + bytes(16)]


def _changed_gguf(data: bytes, rng: Any) -> bytes:
    """Return a file with a number of its header another one, or any bytes changed."""
    if rng.random() < 0.4 or len(data) < 32:
        return changed_bytes(data, rng)
    at = rng.randrange(4, len(data) - 8)
    number = rng.choice([0, 1, 8, 9, 30, 41, 255, 2**24 + 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
    return data[:at] + struct.pack("<Q", number)[: rng.choice([4, 8])] + data[at + 8 :]


def _read_gguf(data: bytes, folder: Path) -> None:
    file = folder / "a.gguf"
    file.write_bytes(data)
    opened = GgufFile(file)
    for tensor in opened.header.tensors.values():
        blocks = opened.blocks(tensor)
        with np.errstate(all="ignore"):
            decode(tensor.kind, np.ascontiguousarray(blocks), np.empty((len(blocks), tensor.kind.elements), np.float32))
        opened.release(tensor, 0, len(blocks))


def _names() -> list[bytes]:
    return [b"model.layers.0.a.weight\nmodel.layers.1.a.weight\nlm_head.weight", "model.layers.².w\nγ\n.\n..0".encode()]


def _hessian(home: Home) -> bytes:
    file = home.folder / "h.safetensors"
    if not file.exists():
        facts: dict[str, Any] = dict.fromkeys(("num_samples", "num_tokens", "max_length", "seed"), 1)
        facts |= dict.fromkeys(("model", "model_fingerprint", "model_class", "data", "data_digest", "dtype"), "x")
        terms = (np.ones((1, 3)),)
        curvatures = {"w": Curvature(terms=terms, num_tokens=3, gram=np.eye(3, dtype=np.float32))}
        provenance = Provenance(versions=(("torch", "2"),), **facts)
        DiagonalHessian(curvatures=curvatures, provenance=provenance, why_missing={"b": "no data"}).save(file)
    return file.read_bytes()


def _changed_hessian(data: bytes, rng: Any) -> bytes:
    size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    try:
        header = json.loads(data[8 : 8 + size])
        about = json.loads(header["__metadata__"]["sculpt"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return changed_bytes(data, rng)
    what = rng.random()
    if what < 0.2:
        return changed_bytes(data, rng)
    if what < 0.8:
        header["__metadata__"]["sculpt"] = json.dumps(changed_value(about, rng))
    else:
        header = changed_value(header, rng)
    return with_header(as_json(header), data[8 + size :])


def _read_hessian(data: bytes, folder: Path) -> None:
    from sculpt.hessian.store.report import report

    file = folder / "h.safetensors"
    file.write_bytes(data)
    loaded = DiagonalHessian.load(file)
    report(loaded)
    loaded.merge([loaded]).save(folder / "again.safetensors")


def _recipes() -> list[bytes]:
    return [
        b"method: ties\nbase: base\nmodels:\n  - model: sft\n    weights: 1.0\noptions: {density: 0.5}\n"
        b'rules:\n  - match: ["*.mlp.*"]\n    options: {density: {gradient: [0.2, 0.8]}}\n'
        b"  - match: [model.norm.*]\n    keep: base\ndtype: bfloat16\nseed: 3\nmax_shard_size: 5GB\n"
        b"policies: {on_missing: keep-base}\ninclude: ['*']\n",
        b"merge_method: dare_ties\nbase_model: base\nmodels:\n  - model: base\n  - model: sft\n    parameters:\n"
        b"      weight: [0.1, 0.9]\n      density:\n        - filter: mlp\n          value: 0.5\n        - value: 1\n"
        b"dtype: float32\nparameters: {normalize: true, int8_mask: true}\n",
        b"slices:\n  - sources:\n      - model: base\n        layer_range: [0, 1]\n      - model: sft\n"
        b"        layer_range: [0, 1]\nmerge_method: slerp\nbase_model: base\nparameters: {t: 0.5}\ndtype: bfloat16\n",
        b"method: linear\nmodels:\n  - &a {model: base, weights: 1}\n  - {<<: *a, model: sft}\n",
    ]


def _suites() -> list[bytes]:
    return [
        b"name: s\nbatch_size: 4\npretrained:\n  prose: {scorer: perplexity, file: a.jsonl, score: accuracy}\n"
        b"target:\n  quiz: {scorer: multiple-choice, file: b.jsonl, normalize: tokens, limit: 5}\n"
        b"  em: {scorer: exact-match, file: c.jsonl, stop: ['\\n'], fields: {prompt: q}}\n"
    ]


def _changed_yaml(data: bytes, rng: Any) -> bytes:
    import yaml

    if rng.random() < 0.5:
        return changed_bytes(data, rng)
    try:
        value = yaml.safe_load(data)
        return yaml.safe_dump(changed_value(value, rng), allow_unicode=True).encode("utf-8", "surrogatepass")
    except Exception:  # seeds that are no YAML any more, values that YAML cannot write
        return changed_bytes(data, rng)


def _torch_files() -> list[bytes]:
    found = []
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        stream = io.BytesIO()
        torch.save({"a": torch.ones(3, 2), "b": torch.arange(4, dtype=torch.bfloat16)}, stream, **options)
        found.append(stream.getvalue())
    return found


def bomb() -> bytes:
    """Return a torch archive whose pickle is a thousand times its size."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
        archive.writestr("archive/version", "3\n")
    return stream.getvalue()


def _rows() -> list[bytes]:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]
    rows: list[Any] = [
        {"text": "some text"},
        {"prompt": "a", "completion": " b"},
        {"messages": chat},
        {"prompt": chat[:1], "completion": chat[1:]},
        {"input_ids": [1, 2, 3], "token_type_ids": [0, 0, 0]},
        {"text": "a", "text_pair": "b"},
        {"image": "x.png", "text": "a"},
        {"images": [{"bytes": None, "path": "x.png"}], "prompt": "a", "completion": "b"},
        {"audio": {"array": [0.0, 0.5], "sampling_rate": 16000}, "text": "a"},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "data:image/png;base64,AA=="}]}]},
    ]
    return [as_json(row) for row in rows]


@cache
def _option_classes() -> dict[str, type]:
    from sculpt.fusion.arithmetic.two_sided import Protection
    from sculpt.fusion.run.calibration import Calibration
    from sculpt.training.settings import AdapterMethod, Schedule

    return {
        cls.__name__: cls
        for cls in (*METHODS.values(), Settings, Policies, Protection, Calibration, AdapterMethod, Schedule)
    }


def _options() -> list[bytes]:
    found = []
    for name, cls in _option_classes().items():
        made = {field.name: getattr(cls(), field.name) for field in dataclasses.fields(cls)}
        found.append(json.dumps({"class": name, "options": made}, default=str).encode())
    return found


def _read_options(data: bytes, folder: Path) -> None:
    try:
        content = json.loads(data)
        cls, options = _option_classes()[content["class"]], content["options"]
        known = {field.name for field in dataclasses.fields(cls)}
        numbers = {key: value for key, value in options.items() if key in known and isinstance(value, (int, float))}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    made = cls(**numbers)
    if isinstance(made, Method):
        made.for_models(made.model_range[0]).options()
