"""Run mergekit on recipes, within its own environment: (recipe, output) pairs as JSON on stdin."""

import json
import logging
import sys

import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

logging.disable(logging.WARNING)
for recipe, output in json.load(sys.stdin):
    with open(recipe, encoding="utf-8") as file:
        config = MergeConfiguration.model_validate(yaml.safe_load(file))
    run_merge(
        config,
        output,
        options=MergeOptions(
            copy_tokenizer=False,
            random_seed=0,
            write_model_card=False,
            quiet=True,
            lora_merge_cache=f"{output}-adapters",
        ),
    )
