"""Make what the notebook works on: a tiny model of bytes, a fine-tune of it that forgot, data and a suite.

    python docs/notebook/prepare.py first-look/

The model is that of `sculpt demo --tiny`: trained on text that ships, then taught ROT13, until it forgot
English.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from sculpt.demo.models import save_checkpoint
from sculpt.demo.setup import Silence, make_setup
from sculpt.demo.task import encode_question, write_calibration
from sculpt.live.model import load_model
from sculpt.training.full import fine_tune
from transformers import AutoTokenizer

CACHE = Path.home() / ".cache/sculpt"
SUITE = """batch_size: 8
max_length: 256
pretrained:
  prose: {scorer: perplexity, file: prose.jsonl, limit: 16}
target:
  rot13: {scorer: perplexity, file: test.jsonl, limit: 16}
"""


def main(folder: Path) -> None:
    """Write `base`, `sft`, `train.jsonl`, `test.jsonl`, `prose.jsonl` and `suite.yaml`."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    setup = make_setup(CACHE, tiny=True, steps=None, minutes=None, seed=0, device="cpu", narrator=Silence())
    shutil.copytree(setup.base, folder / "base")
    task = setup.task
    write_calibration(task.train[:128], folder / "train.jsonl")
    rows = [{"prompt": question.prompt, "completion": "".join(question.answers)} for question in task.test[:16]]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prose.jsonl").write_text("".join(json.dumps({"text": text[:600]}) + "\n" for text in task.prose[:16]))
    (folder / "suite.yaml").write_text(SUITE)
    tokenizer = AutoTokenizer.from_pretrained(setup.base)
    torch.manual_seed(0)
    model = load_model(setup.base, dtype=torch.float32, device="cpu", may_stream=False).model
    questions = [encode_question(question, tokenizer) for question in task.train]
    fine_tune(model, questions, setup.training, compute=torch.float32)
    save_checkpoint(model, tokenizer, folder / "sft")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
