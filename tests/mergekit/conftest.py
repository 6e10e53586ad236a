"""mergekit 0.1.5 in an environment of its own; without it these tests skip.

`make mergekit-venv` creates the environment; SCULPT_MERGEKIT names another place for it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from . import tiny


@pytest.fixture(scope="session")
def python() -> Path:
    found = tiny.environment()
    if found is None:
        pytest.skip("mergekit has no environment here: `make mergekit-venv`")
    return found


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the checkpoints base, a, b and c, and the adapters lora and more."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny.llama(0)
    tiny.write(folder / "base", base)
    for seed, name in enumerate("abc", 1):
        tiny.write(folder / name, tiny.moved(base, seed))
    for seed, name in enumerate(("lora", "more")):
        tiny.write_adapter(folder / name, seed)
    return folder
