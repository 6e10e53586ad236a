"""Write the small quantised checkpoints in this folder by the library of each format, with what it decodes them to.

Run by hand, in an environment of its own: the libraries are none of the project's. Written with compressed-tensors
0.20.0, auto-gptq 0.7.1, autoawq 0.2.7.post3, bitsandbytes 0.50.2, mlx 0.32.4 (on the CPU), nvidia-modelopt 0.47.0.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
NAME = "model.layers.0.mlp.up_proj"
ROWS, COLUMNS = 40, 64


def weight(seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(ROWS, COLUMNS, generator=generator) * torch.rand(ROWS, 1, generator=generator)).to(dtype) * 0.1


def write(
    kind: str, tensors: dict[str, torch.Tensor], decoded: torch.Tensor, said: dict[str, Any], **more: Any
) -> None:
    folder = HERE / kind
    folder.mkdir(exist_ok=True)
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", more.pop("metadata", {"format": "pt"}))
    save_file({f"{NAME}.weight": decoded.detach().contiguous()}, folder / "expected.safetensors")
    config = {"torch_dtype": str(decoded.dtype).removeprefix("torch."), **(more or {"quantization_config": said})}
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def compressed_tensors() -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    kinds = {
        "ct-int4": ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}),
        "ct-int4-asymmetric": (
            "pack-quantized",
            {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False},
        ),
        "ct-int3": ("pack-quantized", {"num_bits": 3, "type": "int", "strategy": "channel", "symmetric": False}),
        "ct-int8-packed": ("pack-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
        "ct-int8": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
        "ct-fp8": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
        "ct-fp8-tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
        "ct-fp8-block": (
            "float-quantized",
            {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 16]},
        ),
        "ct-nvfp4": (
            "nvfp4-pack-quantized",
            {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        ),
        "ct-mxfp4": ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}),
    }
    for seed, (kind, (form, said)) in enumerate(kinds.items()):
        args = QuantizationArgs(**said)
        scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
        w = weight(seed)
        if said["strategy"] == "group" or said["strategy"] == "tensor_group":
            parts = w.reshape(ROWS, -1, said["group_size"])
            low, high = parts.amin(-1), parts.amax(-1)
        elif said["strategy"] == "block":
            height, width = said["block_structure"]
            padded = torch.nn.functional.pad(w, (0, -COLUMNS % width, 0, -ROWS % height))
            parts = padded.reshape(-(-ROWS // height), height, -1, width)
            low, high = parts.amin((1, 3)), parts.amax((1, 3))
        elif said["strategy"] == "channel":
            low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
        else:
            low, high = w.amin().reshape(1), w.amax().reshape(1)
        whole = generate_gparam(low.min().reshape(1), high.max().reshape(1)) if kind == "ct-nvfp4" else None
        scale, zero = calculate_qparams(low, high, args, global_scale=whole)
        state = {"weight": w, "weight_scale": scale if kind == "ct-nvfp4" else scale.to(torch.bfloat16)}
        state["weight_zero_point"] = zero.to(torch.int8)
        if whole is not None:
            state["weight_global_scale"] = whole
        compressor = BaseCompressor.get_value_from_registry(form)
        packed = compressor.compress(state, scheme)
        decoded = compressor.decompress(packed, scheme)["weight"]
        group = {"targets": ["Linear"], "weights": json.loads(args.model_dump_json())}
        said = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
        write(kind, {f"{NAME}.{name}": value for name, value in packed.items()}, decoded, said)


def _unopened(name: str) -> str:
    """Register a package without running its `__init__`, so that single modules of it can be imported."""
    module = types.ModuleType(name)
    head, _, tail = name.partition(".")
    root = (
        Path(importlib.util.find_spec(head).submodule_search_locations[0])
        if not tail
        else Path(sys.modules[head].__path__[0])
    )
    module.__path__ = [str(root.joinpath(*tail.split(".")) if tail else root)]
    sys.modules[name] = module
    return name


def gptq() -> None:
    package = _unopened("auto_gptq")
    for inner in ("nn_modules", "nn_modules.qlinear"):  # their own imports want an older transformers
        _unopened(f"{package}.{inner}")
    QuantLinear = importlib.import_module(f"{package}.nn_modules.qlinear.qlinear_cuda").QuantLinear

    for kind, bits, group, ordered in (
        ("gptq", 4, 16, False),
        ("gptq-act-order", 4, 16, True),
        ("gptq-int3", 3, 32, False),
    ):
        w = weight(20 + bits, torch.float16)
        w = w[:32]  # 3 bits are packed by 32 outputs
        linear = torch.nn.Linear(COLUMNS, len(w), bias=False, dtype=torch.float16)
        linear.weight.data = w
        groups = torch.arange(COLUMNS) // group
        if ordered:
            groups = groups[torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(1))]
        scale = torch.stack(
            [w[:, groups == g].float().abs().amax(1) / (2 ** (bits - 1)) for g in range(COLUMNS // group)], 1
        )
        zero = torch.randint(1, 2**bits, scale.shape, generator=torch.Generator().manual_seed(2)).float()
        layer = QuantLinear(bits, group, COLUMNS, len(w), False, weight_dtype=torch.float16)
        layer.pack(linear, scale.to(torch.float16), zero, groups.to(torch.int32))
        # It multiplies by the weight that it decodes: rows of the identity show that weight.
        decoded = layer(torch.eye(COLUMNS, dtype=torch.float16)).T
        state = {f"{NAME}.{name}": tensor for name, tensor in layer.state_dict().items()}
        write(kind, state, decoded, {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": ordered})


def awq() -> None:
    sys.modules["datasets"] = types.ModuleType("datasets")
    sys.modules["datasets"].load_dataset = None
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    w, group = weight(30, torch.float16)[:32], 32
    linear = torch.nn.Linear(COLUMNS, 32, bias=False, dtype=torch.float16)
    linear.weight.data = w
    scale = (w.reshape(32, -1, group).float().abs().amax(-1) / 7).to(torch.float16)
    zero = torch.randint(0, 16, scale.shape, generator=torch.Generator().manual_seed(3)).to(torch.float16)
    layer = WQLinear_GEMM.from_linear(linear, 4, group, scales=scale.T, zeros=zero.T)
    decoded = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, group).T
    state = {f"{NAME}.{name}": tensor for name, tensor in layer.state_dict().items()}
    write("awq", state, decoded, {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"})


def bitsandbytes() -> None:
    import bitsandbytes as bnb

    said = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    for kind, code, nested, dtype in (
        ("bnb-nf4", "nf4", False, torch.bfloat16),
        ("bnb-nf4-double", "nf4", True, torch.bfloat16),
        ("bnb-fp4", "fp4", False, torch.float16),
    ):
        w = torch.randn(90, 70, generator=torch.Generator().manual_seed(4)).to(dtype) * 0.1  # no whole blocks
        packed, state = bnb.functional.quantize_4bit(w, blocksize=64, compress_statistics=nested, quant_type=code)
        decoded = bnb.functional.dequantize_4bit(packed, state)
        parts = {f"{NAME}.weight.{name}": value for name, value in state.as_dict(packed=True).items()}
        write(kind, {f"{NAME}.weight": packed, **parts}, decoded, said)
    w = weight(41, torch.float16)
    packed, scale, _ = bnb.functional.int8_vectorwise_quant(w)
    decoded = bnb.functional.int8_vectorwise_dequant(packed, scale)
    state = {
        f"{NAME}.weight": packed,
        f"{NAME}.SCB": scale,
        f"{NAME}.weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    write("bnb-int8", state, decoded, {"quant_method": "bitsandbytes", "load_in_8bit": True})


def mlx() -> None:
    import mlx.core as mx

    for kind, bits, group in (("mlx-int4", 4, 32), ("mlx-int3", 3, 64), ("mlx-int8", 8, 64)):
        w = mx.array(weight(50 + bits).float().numpy()).astype(mx.bfloat16)
        packed, scale, bias = mx.quantize(w, group_size=group, bits=bits)
        decoded = mx.dequantize(packed, scale, bias, group_size=group, bits=bits)
        found = [
            torch.frombuffer(bytearray(bytes(memoryview(a.view(mx.uint8)))), dtype=torch.uint8)
            for a in (packed, scale, bias, decoded)
        ]
        kinds = (torch.uint32, torch.bfloat16, torch.bfloat16, torch.bfloat16)
        shapes = [tuple(a.shape) for a in (packed, scale, bias, decoded)]
        w_, s_, b_, d_ = (f.view(k).reshape(shape) for f, k, shape in zip(found, kinds, shapes, strict=True))
        state = {f"{NAME}.weight": w_, f"{NAME}.scales": s_, f"{NAME}.biases": b_}
        write(kind, state, d_, {}, quantization={"bits": bits, "group_size": group}, metadata={"format": "mlx"})


def modelopt() -> None:
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    w = weight(60)
    packed, scale, whole = NVFP4QTensor.quantize(w, 16)
    decoded = packed.dequantize(dtype=torch.bfloat16, scale=scale, double_scale=whole, block_sizes={-1: 16})
    state = {
        f"{NAME}.weight": packed._quantized_data,
        f"{NAME}.weight_scale": scale,
        f"{NAME}.weight_scale_2": whole,
        f"{NAME}.input_scale": torch.tensor(0.01),
    }
    write("modelopt-nvfp4", state, decoded, {"quant_method": "modelopt", "quant_algo": "NVFP4"})


if __name__ == "__main__":
    for make in (compressed_tensors, gptq, awq, bitsandbytes, mlx, modelopt):
        if len(sys.argv) < 2 or make.__name__ in sys.argv[1:]:
            make()
