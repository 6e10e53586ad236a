"""A model without a configuration of its own, such as a trainer's shards, run with that of its base."""

from __future__ import annotations

from typing import Any, final

from .source import Source
from .view import View


@final
class Lent(View):
    """A model that has the configuration and tokenizer of another one; what lies beside it is its own."""

    is_lent = True

    def __init__(self, own: Source, lender: Source) -> None:
        super().__init__(own)
        self.folder = lender.folder
        self._lender = lender

    @property
    def config(self) -> dict[str, Any] | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The lender's `config.json`."""
        return self._lender.config


def lent(own: Source, lender: Source) -> Source:
    """Return a model with the configuration of another; itself where it has one, or where loaders read its files."""
    needs = own.is_foreign and own.config is None and lender.config is not None
    return Lent(own, lender) if needs else own
