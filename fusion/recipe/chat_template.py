"""The output's chat template, where a recipe asks for one: that of most models, a known format's, or as written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..checkpoint import Source
from ..checkpoint.json_file import read_json
from ..errors import MethodError, did_you_mean
from ..file_kinds import TOKENIZER_CONFIG

TEMPLATE_FILE = "chat_template.jinja"

# The formats that mergekit has a name for, as their makers describe them.
FORMATS = {
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
        "{{ message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% set said = namespace(before='') %}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{% set said.before = message['content'] + '\\n\\n' %}"
        "{% elif message['role'] == 'user' %}"
        "{{ ' [INST] ' + said.before + message['content'] + ' [/INST]' }}{% set said.before = '' %}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
        "{% else %}{{ raise_exception('a message is of system, user or assistant') }}{% endif %}"
        "{% endfor %}"
    ),
    "alpaca": (
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '### Instruction:\\n' }}"
        "{% elif message['role'] == 'user_context' %}{{ '### Input:\\n' }}"
        "{% elif message['role'] == 'assistant' %}{{ '### Response:\\n' }}{% endif %}"
        "{{ message['content'] | trim }}{% if not loop.last %}{{ '\\n\\n' }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\n\\n### Response:\\n' }}{% endif %}"
    ),
    "exaone": (
        "{% for message in messages %}"
        "{% if loop.first and message['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}"
        "{{ '[|' + message['role'] + '|]' + message['content'] }}"
        "{% if message['role'] != 'user' %}{{ '[|endofturn|]' }}{% endif %}{{ '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
    ),
}


def find_template(asked: str, models: Iterable[Source]) -> str | None:
    """Return a template in Jinja: `auto` is that of most models, of the first of them where several have as many.

    None is none, where no model has one.

    Raises:
        MethodError: It is no format that is known here, and no template either.
    """
    if asked == "auto":
        found = Counter(template for model in models if (template := template_of(model)) is not None)
        return found.most_common(1)[0][0] if found else None
    if asked in FORMATS:
        return FORMATS[asked]
    if "{" not in asked:
        hint = did_you_mean(asked, ["auto", *FORMATS])
        raise MethodError(f"no chat template is called `{asked}`", hint=hint)
    return asked


def template_of(model: Source) -> str | None:
    """Return the chat template that a model's tokenizer has, or None."""
    files = model.companions()
    if Path(TEMPLATE_FILE) in files:
        return files[Path(TEMPLATE_FILE)].read_text(encoding="utf-8").strip()
    config = read_json(files[Path(TOKENIZER_CONFIG)]) if Path(TOKENIZER_CONFIG) in files else {}
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = {named["name"]: named["template"] for named in found}.get("default")
    return found.strip() if isinstance(found, str) else None


def write_template(template: str, folder: Path) -> None:
    """Give the tokenizer in a folder a chat template, wherever readers of either age look for it."""
    (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    file = folder / TOKENIZER_CONFIG
    config = read_json(file)
    if "chat_template" in config:
        text = json.dumps({**config, "chat_template": template}, indent=2, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")
