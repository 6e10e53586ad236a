"""What can go wrong, each worded once.

    SculptError
    ├── CheckpointError      a file is missing, malformed, truncated or of an unsupported kind
    │   └── NothingThereError    no model lies in a store or behind a web server under the name
    ├── MismatchError       base and tuned disagree on a tensor's presence, shape or dtype
    ├── NonFiniteError       a tensor holds NaN or infinity
    ├── MethodError          an option of a method is out of range
    │   └── MemoryBudgetError    a tensor that is worked on whole takes more memory than it may
    ├── CurvatureError       calibration statistics do not fit the checkpoint
    ├── DataError            calibration or evaluation data cannot be read
    ├── RecipeError          a recipe cannot be read, or says what cannot be done
    ├── ModelError           transformers cannot build or run the model
    ├── DeviceError          a device is unknown to torch or not there
    └── OutputError          the output exists, lies inside an input, or cannot be written
        └── LostProcessError     one of several processes has ended: what is done stays, for the same command to go on

The library raises, `cli/app.py` prints. A message is one sentence: lower case, no full stop, values in
backticks. `hint` is a second sentence about the way out; `ways` are options that allow it. Options have the names of
their fields, in backticks; `options` says which words are such, for the command line to put the flag's name there.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way out of a failure: an option that allows it, its value if it takes one, and what that does."""

    option: str
    value: str = ""
    effect: str


class SculptError(Exception):
    """An expected failure, told in one sentence, with an optional hint and ways out that an option offers.

    Attributes:
        options: What options the message and the hint name: a field, or `Class.field` where the field's name alone
            does not say whose it is.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, ways: Sequence[Way] = (), options: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.ways = tuple(ways)
        self.options = tuple(options)


class CheckpointError(SculptError):
    """A checkpoint file is missing, malformed, truncated or of an unsupported kind."""


class NothingThereError(CheckpointError):
    """Nothing lies in a store or behind a web server under the name."""


class MismatchError(SculptError):
    """Base and tuned disagree on a tensor; `name` is the tensor."""

    def __init__(self, name: str, message: str, *, hint: str | None = None, ways: Sequence[Way] = ()) -> None:
        super().__init__(message, hint=hint, ways=ways)
        self.name = name


class NonFiniteError(SculptError):
    """A tensor holds NaN or infinity; `name` is the tensor, `where` the checkpoint that holds it."""

    def __init__(self, name: str, where: str, count: int) -> None:
        super().__init__(
            f"`{name}` in {where} holds {count} NaN or infinite value{'s' if count != 1 else ''}",
            ways=[
                Way(option="on_nonfinite", value="keep", effect="writes such elements as the tuned model has them"),
            ],
        )
        self.name = name
        self.where = where
        self.count = count


class MethodError(SculptError):
    """An option of a method is out of range, or the method cannot be applied to a tensor."""


class MemoryBudgetError(MethodError):
    """A tensor that is worked on whole takes more memory than was allowed.

    Attributes:
        needed: Bytes that it takes with the tiles of this budget.
        budget: Bytes that were allowed.
        enough: Bytes that will do; tiles grow with the budget up to their size without one.
    """

    def __init__(
        self, name: str, shape: tuple[int, ...], method: str, *, needed: int, budget: int, enough: int
    ) -> None:
        super().__init__(
            f"`{name}` [{', '.join(map(str, shape))}] takes {needed / 1e6:,.0f} MB at once in {method}, "
            f"and {budget / 1e6:,.0f} MB are allowed",
            hint=f"a budget of {-(-enough // 1_000_000)}MB is enough for the largest tensor",
        )
        self.name = name
        self.needed = needed
        self.budget = budget
        self.enough = enough


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


class LostProcessError(OutputError):
    """One of several processes ended before its work was done; the same command goes on from what is there."""


def first_line(error: BaseException) -> str:
    """Return what a library's error says, without its further lines: torch and transformers write whole pages.

    Where a library could not import another, what that one says.
    """
    while isinstance(error, ImportError) and error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    missing = missing_extra(error) if isinstance(error, ImportError) else None
    return lines[0].rstrip(".") if missing is None else f"{missing.message} ({missing.hint})"


def cannot_read(error: OSError, path: Path) -> CheckpointError:
    """Return the error of the file system, met while an input was read, as ours."""
    return CheckpointError(f"cannot read `{path}`: {error.strerror or error}")


def os_error(error: OSError, path: Path) -> OutputError:
    """Return the error of the file system as ours."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"the disk is full: cannot write `{path}`", hint="the earlier output is unchanged")
    return OutputError(f"cannot write `{path}`: {error.strerror or error}")


def near(name: str, known: Collection[str]) -> str | None:
    """Return a hint that names what comes near, if anything does."""
    found = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{found[0]}`?" if found else None


def did_you_mean(name: str, known: Collection[str]) -> str | None:
    """Return a hint that names what comes near, or all that is known."""
    return near(name, known) or (f"known here: {', '.join(sorted(known))}" if known else None)


EXTRAS = {  # what is installed for a package that is not there
    "accelerate": "calibrate",
    "greenlet": "calibrate",
    "torch": "calibrate",
    "transformers": "calibrate",
    "peft": "train",
    "pyarrow": "parquet",
    "PIL": "images",
    "matplotlib": "plots",
    "huggingface_hub": "hub",
}


def installs(extra: str) -> str:
    """Return the hint that names what installs an extra."""
    return f"`pip install 'checkpoint-sculpt[{extra}]'`"


def missing_extra(error: ImportError) -> SculptError | None:
    """Return what is told of a package that is not installed, where it is one of an extra's."""
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package not in EXTRAS:
        return None
    return SculptError(f"this needs `{package}`, which is not installed", hint=installs(EXTRAS[package]))
