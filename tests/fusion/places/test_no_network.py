"""The network is not touched unless something that lies there is named."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ...commands import invoke

Pair = Callable[..., tuple[Path, Path]]
# fmt: off
LOCAL = {
    "inspect": ["inspect", "base"],
    "diff": ["diff", "base", "sft"],
    "fuse": ["fuse", "base", "sft", "--no-calibration", "-o", "fused"],
    "ties": ["ties", "base", "sft", "-o", "ties"],
    "merge": ["merge", "recipe.yaml", "-o", "merged"],
    "pack": ["pack", "base", "sft", "-o", "patch.safetensors"],
    "a slip in a file's path": ["inspect", "models/base.safetensors"],
    "a slip in a name": ["inspect", "bsae"],
    "a slip in data": ["fuse", "base", "sft", "--data", "data/train.jsonl"],
}
# fmt: on


@pytest.mark.parametrize("command", LOCAL)
def test_a_run_on_paths_opens_no_socket(
    command: str, make_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pair()
    (tmp_path / "recipe.yaml").write_text("method: dare\nbase: base\nmodels: [sft]\n")
    monkeypatch.chdir(tmp_path)
    touched: list[Any] = []

    def refuse(*words: object, **_: object) -> Any:
        touched.append(words)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    result = invoke(*LOCAL[command])
    assert touched == []
    assert result.exit_code == (1 if "slip" in command else 0), (result.exception, result.output)
