"""What data sets call things, in our words: chats in ShareGPT's form or as JSON, Alpaca's fields, questions.

A row of our own fields comes back as it is. Alpaca's and a question's become a chat of one turn; where a model has no
chat template, Alpaca's become the text that Alpaca was trained on, and a question `Question: …` and `Answer:`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..fusion.errors import DataError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
# Stanford Alpaca's train.py.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Response:"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
OURS = ("messages", "prompt", "completion", "text", "choices", "input_ids", "label")
UNTEMPLATED = "untemplated"  # prompt and completion as text, for a model without a chat template


def in_our_words(row: dict[str, Any], what: str) -> dict[str, Any]:
    """Return a row whose chat is `messages`, or `prompt` and `completion`, if it holds one in another form.

    Raises:
        DataError: What looks like a chat is none.
    """
    named = row.get("file_name")  # as folders of images with `metadata.csv` have it
    if isinstance(named, str) and named.lower().endswith(IMAGE_SUFFIXES) and "image" not in row:
        row["image"] = row.pop("file_name")
    row = {**row, **{key: _parsed(row[key], key, what) for key in ("messages", "conversations", "tools") if key in row}}
    if "conversations" in row and "messages" not in row:
        messages = [_message(said, what) for said in _turns(row.pop("conversations"), what)]
        if isinstance(row.get("system"), str) and messages and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": row.pop("system")}, *messages]
        return {**row, "messages": messages}
    if any(key in row for key in OURS):
        return row
    if isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str):
        return _alpaca(row)
    if isinstance(row.get("question"), str) and isinstance(row.get("answer"), str):
        asked, answer = row.pop("question"), row["answer"]  # which a scorer compares with
        return _asked(row, asked, answer, (f"Question: {asked}\nAnswer:", f" {answer}"))
    return row


def _alpaca(row: dict[str, Any]) -> dict[str, Any]:
    instruction, answer, more = row.pop("instruction"), row.pop("output"), row.pop("input", None) or ""
    text = (ALPACA_WITH_INPUT if more else ALPACA).format(instruction=instruction, input=more)
    found = _asked(row, f"{instruction}\n{more}" if more else instruction, answer, (text, f"\n{answer}"))
    before = [
        {"role": role, "content": said}
        for pair in found.pop("history", None) or ()
        for role, said in zip(("user", "assistant"), pair, strict=False)
    ]
    if isinstance(found.get("system"), str):
        before.insert(0, {"role": "system", "content": found.pop("system")})
    return {**found, "prompt": [*before, *found["prompt"]]}


def _asked(row: dict[str, Any], asked: str, answer: str, plain: tuple[str, str]) -> dict[str, Any]:
    return {**row, "prompt": [{"role": "user", "content": asked}], "completion": answer, UNTEMPLATED: plain}


def _parsed(value: Any, key: str, what: str) -> Any:
    """Return a list that may be stored as JSON, as columns of one type are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"`{key}` of {what} is neither a list nor JSON: {error}") from error


def _turns(value: Any, what: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(said, Mapping) for said in value):
        raise DataError(f"`conversations` of {what} is not a list of messages")
    return value


def _message(said: Mapping[str, Any], what: str) -> dict[str, Any]:
    role, content = said.get("from", said.get("role")), said.get("value", said.get("content"))
    if role not in ROLES:
        raise DataError(f"{what} has a message from `{role}`; known are {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": content}
