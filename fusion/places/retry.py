"""Asking again: what a network loses now and then is asked for once more, after a while that grows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import SculptError
from .names import told_place, without_secrets

logger = logging.getLogger(__name__)
T = TypeVar("T")
TRIES = 5
FIRST_WAIT = 0.5  # seconds; twice as long before each further try
AGAIN = (408, 425, 429, 500, 502, 503, 504)
# Of libraries that are not imported for their names.
LOST = (
    *("ConnectError", "ConnectTimeout", "ReadTimeout", "ReadError", "RemoteProtocolError", "TimeoutException"),
    *("ClientConnectionError", "ClientPayloadError", "ServerDisconnectedError", "FSTimeoutError"),
    *("EndpointConnectionError", "ConnectionClosedError", "ReadTimeoutError", "IncompleteReadError"),
)


def status_of(error: BaseException) -> int | None:
    """Return the status that a server answered, as the libraries have it."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # of botocore
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    found = getattr(response, "status_code", None) or getattr(error, "status", None)
    if found is None and error.__cause__ is not None:  # fsspec tells of all that fails as not found
        return status_of(error.__cause__)
    return found if isinstance(found, int) else None


def is_lost(error: BaseException) -> bool:
    """Return whether the same question may be answered later."""
    if (status := status_of(error)) is not None:
        return status in AGAIN
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, (ConnectionError, TimeoutError)) or not names.isdisjoint(LOST)


def retried(ask: Callable[[], T], what: str) -> T:
    """Return what `ask` does, asked up to five times where a network or a server fails."""
    for tries in range(1, TRIES + 1):
        try:
            return ask()
        except SculptError:
            raise
        except Exception as error:
            if tries == TRIES or not is_lost(error):
                raise
            wait, said = FIRST_WAIT * 2 ** (tries - 1), str(error) or type(error).__name__
            logger.info("%s: %s; asked again in %g s", told_place(what), without_secrets(said), wait)
            time.sleep(wait)
    raise AssertionError("a try returns or raises")
