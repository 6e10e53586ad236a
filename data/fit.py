"""What becomes of samples over the longest length, and how many there were."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from ..fusion.errors import DataError, Way
from ..fusion.rows import TooLong
from .tokens import Tokens

logger = logging.getLogger(__name__)


class TooLongError(Exception):
    """A sample that is to be dropped for its length; `Encoder` catches it."""


@dataclass(kw_only=True, eq=False)
class Fit:
    """Samples within a length.

    Attributes:
        length: The most tokens.
        too_long: What becomes of a longer sample.
        cut, dropped: How many samples so far.
    """

    length: int
    too_long: TooLong = "cut"
    cut: int = field(default=0, init=False)
    dropped: int = field(default=0, init=False)

    def places(self, tokens: Tokens, what: str) -> list[int]:
        """Return which tokens of a sample stay.

        Raises:
            DataError: It is longer, and that is an error.
            TooLongError: It is longer, and such are dropped.
        """
        if not self.exceeds(len(tokens.ids), what):
            return list(range(len(tokens.ids)))
        return tokens.fitting(self.length)

    def exceeds(self, num_tokens: int, what: str) -> bool:
        """Return whether a sample is to be cut, which is counted; raise as `places` does."""
        if num_tokens <= self.length:
            return False
        if self.too_long == "error":
            raise DataError(
                f"{what} has {num_tokens} tokens, more than {self.length}",
                ways=[
                    Way(option="max_length", value=str(num_tokens), effect="takes it whole"),
                    Way(option="too_long", value="cut", effect="cuts such rows, the prompt before the completion"),
                    Way(option="too_long", value="drop", effect="leaves them out"),
                ],
            )
        if self.too_long == "drop":
            self.dropped += 1
            raise TooLongError
        self.cut += 1
        return True

    def say(self, name: str) -> None:
        """Say how many samples were cut or dropped."""
        for count, done in ((self.cut, "were cut"), (self.dropped, "were dropped")):
            if count:
                logger.warning("%d samples of `%s` have more than %d tokens and %s", count, name, self.length, done)
