"""What a base predicts on the general set, kept in the cache folder: every fine-tune is compared with the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from ..data.example import Example
from ..data.sampling import digest_of
from ..fusion.cache import default_cache, keep_within, write_whole
from ..fusion.digests import digest_of_facts
from .reader import Reader

logger = logging.getLogger(__name__)

MOST_BYTES = 1 << 26  # of one base
ALL_BYTES = 1 << 30


def remembered_logits(
    reader: Reader, groups: Sequence[Sequence[Example]], *, advance: Callable[[], None] = lambda: None
) -> Iterator[Tensor]:
    """Yield what `reader.logits` does: by its output layer alone, where the rest is known from an earlier run.

    What is kept is what the output layer was given, far smaller than the logits; only of models whose logits are what
    that layer gives, as nearly all are.
    """
    file = _file(reader, groups)
    known = _read(file)
    if known is not None:
        yield from reader.logits_of(known)
        return
    found: list[Tensor] | None = []
    size = 0
    for number, logits in enumerate(reader.logits(groups, advance=advance)):
        given = reader.hidden.pop(number)
        if found is not None:
            size += given.nbytes
            if size > MOST_BYTES or (number == 0 and not _is_plain(reader, given, logits)):
                found = None
            else:
                found.append(given.cpu())
        yield logits
    if found is not None:
        _write(file, found)


@torch.no_grad()
def _is_plain(reader: Reader, given: Tensor, logits: Tensor) -> bool:
    return torch.equal(reader.head(given).float().cpu(), logits)


def _file(reader: Reader, groups: Sequence[Sequence[Example]]) -> Path:
    facts = {
        "model": reader.checkpoint.resume_key(),
        "beside": reader.checkpoint.companions_key(),
        "class": type(reader.model).__name__,
        "dtype": str(reader.dtype),
        "device": reader.device.type,
        "examples": digest_of([example for group in groups for example in group]),
        "answers": [[example.num_predicted for example in group] for group in groups],
        "versions": [version(package) for package in ("torch", "transformers")],
    }
    return default_cache() / "read" / f"{digest_of_facts(facts)[:32]}.safetensors"


def _read(file: Path) -> list[Tensor] | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(file)
        file.touch()
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        logger.warning("`%s` of an earlier run is not used: %s", file, error)
        return None
    return [found[str(number)] for number in range(len(found))]


def _write(file: Path, given: Sequence[Tensor]) -> None:
    from safetensors.torch import save

    try:
        write_whole(file, save({str(number): one.contiguous() for number, one in enumerate(given)}))
        keep_within(file.parent, ALL_BYTES)
    except OSError as error:
        logger.warning("what the base predicts is not kept for later runs: cannot write `%s`: %s", file, error.strerror)
