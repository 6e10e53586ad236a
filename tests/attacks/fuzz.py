"""Try inputs on every reader until the time is up: `python tests/attacks/fuzz.py --seconds 600`.

Inputs that reach lines of sculpt that none before them reached become seeds. What leaves a reader as anything but a
`SculptError`, or takes longer than a moment, is a fault: it is printed, kept in `corpus/`, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import importlib.util
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

from sculpt.fusion.errors import SculptError

if TYPE_CHECKING:
    from .readers import Reader

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
SECONDS = 20  # that one input may take on a busy machine
TRACED = 10  # times as long takes an input whose lines are watched
PACKAGE = str(HERE.parents[1])


class Hang(BaseException):
    """A reader did not answer."""


def outcome(reader: Reader, data: bytes, seconds: float = SECONDS) -> str:
    """Return `accepted` or `refused`; anything else is raised."""

    def stop(*_: object) -> None:
        raise Hang(f"{reader.name} takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    folder = Path(tempfile.mkdtemp(prefix="sculpt-attack-"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(data, folder)
        return "accepted"
    except SculptError:
        return "refused"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        shutil.rmtree(folder, ignore_errors=True)


def kept(reader: str) -> list[bytes]:
    """Return the inputs that once were faults of a reader."""
    return [file.read_bytes() for file in sorted((CORPUS / reader).glob("*"))]


def keep(reader: str, data: bytes) -> Path:
    """Add an input to those that are tried on every run of the tests."""
    file = CORPUS / reader / hashlib.sha256(data).hexdigest()[:12]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


class _Lines:
    """Notes which lines of sculpt run."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int]] = set()
        self.new = 0

    def call(self, frame: FrameType, _event: str, _argument: Any) -> Callable[..., Any] | None:
        name = frame.f_code.co_filename
        return self.line if name.startswith(PACKAGE) and "/tests/" not in name else None

    def line(self, frame: FrameType, event: str, _argument: Any) -> Callable[..., Any]:
        place = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and place not in self.seen:
            self.seen.add(place)
            self.new += 1
        return self.line


def fuzz(
    reader: Reader,
    rng: random.Random,
    *,
    seconds: float = float("inf"),
    count: float = float("inf"),
    guided: bool = False,
) -> tuple[collections.Counter[str], dict[str, bytes]]:
    """Return how often each outcome came, and an input for each kind of fault."""
    lines, counts, faults = _Lines(), collections.Counter[str](), {}
    pool = [*reader.seeds(), *kept(reader.name)]
    for seed in reader.seeds():
        # The first one may import half of transformers.
        assert outcome(reader, seed, 30 * SECONDS) == "accepted", f"{reader.name} refuses its own seed"
    end, tried = time.monotonic() + seconds, 0
    while tried < count and time.monotonic() < end:
        tried += 1
        data = reader.change(rng.choice(pool), rng)
        lines.new = 0
        if guided:
            sys.settrace(lines.call)
        try:
            counts[outcome(reader, data, TRACED * SECONDS if guided else SECONDS)] += 1
        except (Exception, Hang) as error:
            sys.settrace(None)
            counts["fault"] += 1
            last = traceback.extract_tb(error.__traceback__)[-1]
            own = [
                f
                for f in traceback.extract_tb(error.__traceback__)
                if "/tests/" not in f.filename and PACKAGE in f.filename
            ]
            place = own[-1] if own else last
            faults.setdefault(
                f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {str(error)[:150]!r}", data
            )
        finally:
            sys.settrace(None)
        if lines.new and len(data) < 1 << 16:
            pool.append(data)
    return counts, faults


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"attacks.{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Fuzz for a while and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="in all")
    parser.add_argument("--seed", type=int, default=None, help="of the changes; another each time by default")
    parser.add_argument("--reader", action="append", help="these alone; repeatable")
    parser.add_argument("--plain", action="store_true", help="do not look at the lines that are reached; faster")
    parser.add_argument("--keep", action="store_true", help="keep what is a fault in the corpus")
    chosen = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 30) if chosen.seed is None else chosen.seed
    package = ModuleType("attacks")
    package.__path__ = [str(HERE)]
    sys.modules["attacks"] = package
    _load("mutate")
    module = _load("readers")
    failed = False
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        readers = [r for r in module.readers(module.Home(Path(folder))) if not chosen.reader or r.name in chosen.reader]
        for reader in readers:
            rng = random.Random(f"{seed} {reader.name}")
            counts, faults = fuzz(reader, rng, seconds=chosen.seconds / len(readers), guided=not chosen.plain)
            print(
                f"{reader.name:10} {sum(counts.values()):7}  "
                + "  ".join(f"{k} {v}" for k, v in sorted(counts.items()))
            )
            for told, data in faults.items():
                failed = True
                print(f"    {told}\n        {data[:200]!r}")
                if chosen.keep:
                    print(f"        {keep(reader.name, data)}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
