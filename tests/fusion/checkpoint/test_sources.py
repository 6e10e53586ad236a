"""What every source promises, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sculpt.fusion.checkpoint import Checkpoint, MemorySource, Source
from sculpt.fusion.checkpoint.output.layout import OutputTensor
from sculpt.fusion.checkpoint.output.sink import FiguresSink, MemorySink
from sculpt.fusion.errors import CheckpointError

STATE = {
    "weight": torch.arange(12, dtype=torch.float32).reshape(3, 4).to(torch.bfloat16),
    "transposed": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "ids": torch.arange(5000),
}


def _folder(path: Path) -> Source:
    save_file({name: tensor.contiguous() for name, tensor in STATE.items()}, path / "model.safetensors")
    return Checkpoint(path)


def _torch_file(path: Path) -> Source:
    torch.save(STATE, path / "pytorch_model.bin")
    return Checkpoint(path)


def _torch_memory(path: Path) -> Source:
    del path
    return MemorySource(STATE)


def _array_memory(path: Path) -> Source:
    opened = _folder(path)
    return MemorySource({name: opened.read(name).reshape(info.shape) for name, info in opened.tensors.items()})


@pytest.mark.parametrize("make", [_folder, _torch_file, _torch_memory, _array_memory])
def test_the_same_tensors_are_the_same_source(make: Callable[[Path], Source], tmp_path: Path) -> None:
    found, expected = make(tmp_path), _folder(tmp_path)
    assert found.fingerprint == expected.fingerprint
    assert found.base is None
    assert found.changed is None
    for name, tensor in STATE.items():
        info = found.tensors[name]
        assert (info.shape, info.dtype, info.stored) == (tuple(tensor.shape), info.stored, expected.tensors[name].dtype)
        assert info.nbytes == tensor.nbytes
        flat = tensor.reshape(-1).to(torch.float64).numpy()
        assert found.read(name).astype(np.float64).tolist() == flat.tolist()
        stop = min(3, len(flat))
        assert found.read(name, stop // 2, stop).astype(np.float64).tolist() == flat[stop // 2 : stop].tolist()
        found.release(name, 0, 1)
        found.release(name)
        assert found.read(name).tobytes() == expected.read(name).tobytes()


@pytest.mark.parametrize("make", [_folder, _torch_file, _torch_memory])
def test_stored_bytes_are_what_is_read(make: Callable[[Path], Source], tmp_path: Path) -> None:
    source = make(tmp_path)
    shown = 0
    for name in source.tensors:
        place = source.stored(name, 1, 3) if source.tensors[name].num_elements > 2 else None
        if place is not None:
            file, first, last = place
            assert source.mapped()[file][first:last].tobytes() == source.read(name, 1, 3).tobytes()
            assert file.read_bytes()[first:last] == source.read(name, 1, 3).tobytes()
            shown += 1
    assert shown == {_folder: 3, _torch_file: 2}.get(make, 0)  # of a torch file not what is transposed there


def test_a_state_dict_is_not_copied() -> None:
    array, tensor = np.zeros(4, np.float32), torch.zeros(4, dtype=torch.bfloat16)
    source = MemorySource({"array": array, "tensor": tensor}, config={"vocab_size": 3})
    array[1], tensor[2] = 5, 7
    assert source.read("array").tolist() == [0, 5, 0, 0]
    assert source.read("tensor").astype(np.float32).tolist() == [0, 0, 7, 0]
    assert source.config == {"vocab_size": 3}


@pytest.mark.parametrize("value", [[1.0], np.array(["a"]), np.zeros(2, ">f4")])
def test_what_no_checkpoint_could_store_is_refused(value: object) -> None:
    with pytest.raises(CheckpointError, match=r"`x` is .* expected"):
        MemorySource({"x": value})


def test_sinks_take_parts_in_any_order() -> None:
    memory = MemorySink([OutputTensor(name="w", dtype="F32", shape=(2, 3), origin=None)])
    for sink in (memory, FiguresSink()):
        for start, stop in ((4, 6), (0, 4)):
            with sink.room("w", start, stop, np.dtype(np.float32)) as out:
                out[:] = np.arange(start, stop)
        sink.finish("w", {"record": {}})
        assert not sink.finished
        assert sink.read("w", 0, 4) == b""
    assert memory.tensors["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
