"""Only the command line writes flags."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import sculpt
from sculpt.cli.options import flag_named
from sculpt.fusion.arithmetic.two_sided import Protection
from sculpt.fusion.errors import MethodError

PACKAGE = Path(sculpt.__file__).parent
OTHERS = {"cli", "tests", "benchmarks", ".venv"}
LIBRARY = [file for file in sorted(PACKAGE.rglob("*.py")) if not OTHERS & set(file.relative_to(PACKAGE).parts)]


def raised_texts(file: Path) -> list[str]:
    """Return the texts within what a module raises."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    raised = [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    constants = [inner for node in raised for inner in ast.walk(node) if isinstance(inner, ast.Constant)]
    return [constant.value for constant in constants if isinstance(constant.value, str)]


@pytest.mark.parametrize("file", LIBRARY, ids=[str(file.relative_to(PACKAGE)) for file in LIBRARY])
def test_no_library_error_names_a_flag(file: Path) -> None:
    flags = [text for text in raised_texts(file) if re.search(r"(^|[`\s])--[a-z]", text) and "`sculpt " not in text]
    assert not flags, flags


def test_an_option_has_its_own_name_in_python_and_its_flag_on_the_command_line() -> None:
    with pytest.raises(MethodError, match=r"^`weight` must be at least 0, got -1$") as caught:
        Protection(weight=-1)
    assert caught.value.options == ("Protection.weight",)
    assert flag_named("Protection.weight") == "--protect-weight"
    assert flag_named("Calibration.of_other_model") == "--hessian-of-other-model"
    assert flag_named("Settings.max_shard_bytes") == "--max-shard-size"
    assert flag_named("batch_size") == "--batch-size"
