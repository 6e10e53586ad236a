"""What the hub answers where it does not give what was asked for, each in a sentence."""

from __future__ import annotations

from typing import Any

from ..errors import CheckpointError, first_line
from .names import HubName

TOKEN = "`HF_TOKEN`, or `hf auth login`, says who asks"
UNREACHED = ("ConnectError", "ConnectTimeout", "ReadTimeout", "ConnectionError", "TimeoutException", "ProxyError")


def told(error: BaseException, name: HubName, asked: str) -> CheckpointError:
    """Return the error of huggingface_hub as ours."""
    from huggingface_hub import errors

    while isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # the library looked into its cache once more, and tells of that
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            f"`{name.repository}` is gated: the hub gives it to those alone who have accepted its terms",
            hint=f"accept them on its page; then {TOKEN}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(
            f"`{asked}` does not exist: the hub has `{name.repository}`, without revision `{name.revision or 'main'}`",
            hint="a revision is a branch, a tag or a commit",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"`{asked}` does not exist: neither a path here nor a model on the hub",
            hint=f"is it spelt right? of a private one, {TOKEN}",
        )
    if isinstance(error, errors.HFValidationError):
        return CheckpointError(f"`{asked}` does not exist, and is no name on the hub: {first_line(error)}")
    if status in (401, 403):
        return CheckpointError(
            f"the hub refuses to give `{asked}`: {_said(error)}", hint=f"is the token right? {TOKEN}"
        )
    if status == 429:
        after = response.headers.get("Retry-After")
        when = f"in {after} seconds" if after and after.isdigit() else "in a few minutes"
        return CheckpointError(
            f"the hub has had too many requests from here to give `{asked}`", hint=f"try again {when}; {TOKEN}"
        )
    if status is not None:
        return CheckpointError(
            f"the hub failed to give `{asked}`, by status {status}", hint="try again later; what was fetched stays"
        )
    if isinstance(error, (ConnectionError, TimeoutError)) or any(
        kind.__name__ in UNREACHED for kind in type(error).__mro__
    ):
        return CheckpointError(
            f"`{asked}` does not exist here, and the hub cannot be reached: {first_line(error)}",
            hint="is there a network? `HF_ENDPOINT` names another hub",
        )
    return CheckpointError(f"cannot fetch `{asked}` from the hub: {first_line(error)}", hint="what was fetched stays")


def _said(error: BaseException) -> str:
    return str(getattr(error, "server_message", None) or first_line(error))
