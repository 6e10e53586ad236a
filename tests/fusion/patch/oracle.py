"""A reader of patches, written from `docs/patch-format.md` with nothing of sculpt's own; slow, for tiny tensors."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import xxhash

FLOATS = {"BF16": (7, 0xFF), "F16": (10, 0x1F), "F32": (23, 0xFF)}
KINDS = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
BITS = {"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "BF16": 16, "F16": 16, "I16": 16}
BITS |= {"U16": 16, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


def entries(file: Path) -> tuple[dict[str, tuple[dict[str, Any], bytes]], dict[str, str]]:
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    body = data[8 + size :]
    return {name: (e, body[slice(*e["data_offsets"])]) for name, e in header.items()}, metadata


def digest(data: bytes) -> bytes:
    return xxhash.xxh3_128_digest(data)


def width_of(dtype: str) -> int:
    return {64: 32, 32: 32, 16: 16}.get(BITS.get(dtype, 8), 8)


def read(patch: Path, base: dict[str, tuple[dict[str, Any], bytes]]) -> dict[str, bytes]:
    """Return the bytes of each tensor of the model."""
    own, metadata = entries(patch)
    assert (metadata["format"], metadata["version"]) == ("sculpt-patch", "1")
    assert digest(own["contents"][1]).hex() == metadata["contents_digest"]
    contents = json.loads(zlib.decompress(own["contents"][1]))
    return {name: tensor(name, said, own, base) for name, said in contents["tensors"].items()}


def tensor(name: str, said: dict[str, Any], own: Any, base: Any) -> bytes:
    code = own[f"tensor/{name}"][1]
    assert digest(code).hex() == said["code"]
    dtype, width = said["dtype"], width_of(said["dtype"])
    word = np.dtype(f"<u{width // 8}")
    count = prod(said["shape"]) * BITS.get(dtype, 8) // width
    reference = np.zeros(count, word)
    if said["base"] is not None:
        entry, data = base[said["base"]]
        if entry["dtype"] != dtype:
            data = np.frombuffer(data, KINDS[entry["dtype"]]).astype(KINDS[dtype]).tobytes()
        found = np.frombuffer(data, word)[:count]
        reference[: len(found)] = found
    out, frames = [], -(-count // (1 << 20))
    at = 36 * frames
    for k in range(frames):
        nbytes, of_base, of_model = struct.unpack_from("<I16s16s", code, 36 * k)
        words = reference[k << 20 : (k + 1) << 20]
        assert digest(words.tobytes()) == of_base
        made = words if not nbytes else frame(code[at : at + nbytes], words, k << 20, said, own, width)
        assert digest(made.tobytes()) == of_model
        out.append(made.tobytes())
        at += nbytes
    return b"".join(out)


def frame(code: bytes, base: np.ndarray, start: int, said: dict[str, Any], own: Any, width: int) -> np.ndarray:
    kind, recipe = code[0], said["recipe"]
    rows, of_columns = b"", b""
    if kind == 3:
        (width_of_row,) = struct.unpack_from("<I", code, 1)
        first, last = start // width_of_row, (start + len(base) - 1) // width_of_row
        rows, code = code[5 : 6 + last - first], code[6 + last - first :]
        of_columns, code = code[:width_of_row], b"\3" + code[width_of_row:]
    top, high, num_tables, runs = struct.unpack_from("<HHBB", code, 1)
    at, table_of = 7, []
    for _ in range(runs + 1):
        table_of += [code[at]] * (code[at + 1] + 1)
        at += 2
    lasts = code[at : at + num_tables]
    at += num_tables
    tables = []
    for last in lasts:
        table = []
        for _ in range(last + 1):
            value = code[at]
            at += 1
            if value >= 128:
                value, at = value - 128 + 128 * code[at], at + 1
            table.append(value)
        assert sum(table) == 4096
        tables.append([token for token, f in enumerate(table) for _ in range(f)])
    num_words, num_bits, *states = struct.unpack_from("<II8I", code, at)
    at += 40
    words = list(np.frombuffer(code[at : at + 2 * num_words], "<u2"))
    bits = int.from_bytes(code[at + 2 * num_words :], "little")
    known = contexts(base, start, said, top, high, draw(recipe, said, own, base, start) if kind in (1, 2) else None)
    if kind == 3:
        places = [divmod(start + i, len(of_columns)) for i in range(len(base))]
        likely = [(rows[row - places[0][0]] + of_columns[column]) // 2 for row, column in places]
        known = [min(2 * e + more, 254) for e, more in zip(known, likely, strict=True)]
    target, j, used, taken = base.copy(), 0, 0, 0
    for i, context in enumerate(known):
        if context == 255 or table_of[context] == 255:
            continue
        table, x = tables[table_of[context]], states[j % 8]
        slot = x % 4096
        token = table[slot]
        first = table.index(token)
        x = table.count(token) * (x // 4096) + slot - first
        if x < 65536:
            x, used = 65536 * x + int(words[used]), used + 1
        states[j % 8], j = x, j + 1
        z = token
        if token >= 32:
            n = 3 + (token - 32) // 4
            z = ((4 + (token - 32) % 4) << n) + ((bits >> taken) % (1 << n))
            taken += n
        target[i] = moved(int(base[i]), -(z + 1) // 2 if z % 2 else z // 2, width, said["dtype"] in FLOATS)
    assert used == num_words
    assert taken == num_bits
    assert set(states) == {65536}
    return fused(base, target, recipe, said, own, start) if kind == 1 else target


def moved(base: int, d: int, width: int, is_float: bool) -> int:
    sign = 1 << (width - 1)

    def order(x: int) -> int:
        return x ^ (sign - 1) if is_float and x & sign else x

    return order((order(base) + (-d if is_float and base & sign else d)) % (1 << width))


def contexts(base: np.ndarray, start: int, said: Any, top: int, high: int, drawn: Any) -> list[int]:
    shift, mask = FLOATS.get(said["dtype"], (0, 0))
    found = [min(max(top - ((int(x) >> shift) & mask), 0), 15) for x in base]
    if drawn is None:
        return found
    words, bucket = drawn
    if bucket is None:
        keep = np.float32(said["recipe"]["number"]) * np.float32(2**32)
        return [e if np.float32(u) < keep else 255 for e, u in zip(found, words, strict=True)]
    return [e + 16 * min(high - int(b), 14) if b <= high else 255 for e, b in zip(found, bucket, strict=True)]


def uniform(recipe: Any, start: int, count: int) -> list[int]:
    def mix(x: int) -> int:
        x ^= x >> 16
        x = x * 0x21F0AAAD % 2**32
        x ^= x >> 15
        x = x * 0xD35A2D97 % 2**32
        return x ^ x >> 15

    text = f"{recipe['seed']}/{recipe['stream']}/{start >> 32}/{recipe['name']}".encode()
    low, high = struct.unpack("<II", hashlib.blake2b(text, digest_size=8, person=b"sculpt-uniform").digest())
    return [mix(mix((i + low) % 2**32) ^ high) for i in range(start, start + count)]


def roots(recipe: Any, said: Any, own: Any, start: int, count: int) -> np.ndarray:
    root = recipe["root"]
    data = own[root["entry"]][1]
    content = zlib.decompress(data[8:])
    assert len(content) == struct.unpack("<Q", data[:8])[0]
    if root["terms"]:
        total, at = 0.0, 0
        for term in root["terms"]:
            total = total + np.frombuffer(content, "<f8", prod(term), at).reshape(term)
            at += 8 * prod(term)
        shape = [recipe["rows"], *said["shape"][1:]]
        return np.broadcast_to(np.sqrt(2.0 * total + 1.0), shape).astype("f4").reshape(-1)[start : start + count]
    values, repeat, inner = np.frombuffer(content, "<f4"), root["repeat"], root["inner"]
    return np.array([values[i // (repeat * inner) * inner + i % inner] for i in range(start, start + count)])


def draw(recipe: Any, said: Any, own: Any, base: np.ndarray, start: int) -> Any:
    words = uniform(recipe, start, len(base))
    if recipe["method"] == "dare":
        return words, None
    bound = np.array(words, np.float32) / (np.float32(recipe["number"]) * roots(recipe, said, own, start, len(base)))
    return words, bound.view(np.uint32) >> 21


def fused(base: np.ndarray, tuned: np.ndarray, recipe: Any, said: Any, own: Any, start: int) -> np.ndarray:
    kind = KINDS[said["dtype"]]
    b, t = base.view(kind).astype("f4"), tuned.view(kind).astype("f4")
    delta, kept = t - b, base != tuned
    number, strength = np.float32(recipe["number"]), np.float32(recipe["strength"])
    if recipe["method"] == "dare":
        values = b + np.float32(recipe["strength"] / recipe["number"]) * delta
    else:
        q = number * (roots(recipe, said, own, start, len(base)) * np.abs(delta))
        with np.errstate(all="ignore"):
            values = b + strength * (delta / np.minimum(q, np.float32(1)))
        if strength == 1:
            values = np.where(q >= 1, t, values)
    return np.where(kept, values.astype(kind).view(base.dtype), base)
