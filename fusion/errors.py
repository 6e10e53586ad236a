"""What can go wrong, each worded once.

    SculptError
    ├── CheckpointError      a file is missing, malformed, truncated or of an unsupported kind
    ├── MismatchError       base and tuned disagree on a tensor's presence, shape or dtype
    ├── NonFiniteError       a tensor holds NaN or infinity
    ├── MethodError          an option of a method is out of range
    ├── CurvatureError       calibration statistics do not fit the checkpoint
    ├── DataError            calibration or evaluation data cannot be read
    ├── RecipeError          a recipe cannot be read, or says what cannot be done
    ├── ModelError           transformers cannot build or run the model
    ├── DeviceError          a device is unknown to torch or not there
    └── OutputError          the output exists, lies inside an input, or cannot be written

The library raises, `cli/app.py` prints. A message is one sentence: lower case, no full stop, values in
backticks. `hint` is a second sentence about the way out.
"""

from __future__ import annotations

import errno
from pathlib import Path


class SculptError(Exception):
    """An expected failure, told in one sentence, with an optional hint."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class CheckpointError(SculptError):
    """A checkpoint file is missing, malformed, truncated or of an unsupported kind."""


class MismatchError(SculptError):
    """Base and tuned disagree on a tensor; `name` is the tensor."""

    def __init__(self, name: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.name = name


class NonFiniteError(SculptError):
    """A tensor holds NaN or infinity; `name` is the tensor, `where` the checkpoint that holds it."""

    def __init__(self, name: str, where: str, count: int) -> None:
        super().__init__(
            f"`{name}` in {where} holds {count} NaN or infinite value{'s' if count != 1 else ''}",
            hint="`--on-nonfinite keep` writes such elements as the tuned model has them",
        )
        self.name = name
        self.where = where
        self.count = count


class MethodError(SculptError):
    """An option of a method is out of range, or the method cannot be applied to a tensor."""


class CurvatureError(SculptError):
    """Calibration statistics are unreadable or do not belong to the checkpoint."""


class DataError(SculptError):
    """Calibration or evaluation data cannot be read."""


class RecipeError(SculptError):
    """A recipe is unreadable or says what cannot be done; `file` and `line` (from 1, or None) tell where."""

    def __init__(self, file: Path, line: int | None, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"`{file}`{'' if line is None else f' line {line}'}: {message}", hint=hint)
        self.file = file
        self.line = line


class ModelError(SculptError):
    """The model cannot be built or run by transformers."""


class DeviceError(SculptError):
    """A device is unknown to torch or not there."""


class OutputError(SculptError):
    """The output exists, lies inside an input, or cannot be written."""


def first_line(error: BaseException) -> str:
    """Return what a library's error says, without its further lines: torch and transformers write whole pages."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def os_error(error: OSError, path: Path) -> OutputError:
    """Return the error of the file system as ours."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"the disk is full: cannot write `{path}`", hint="nothing was left under the final name")
    return OutputError(f"cannot write `{path}`: {error.strerror or error}")
