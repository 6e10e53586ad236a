"""Run the notebook and keep what its cells show.

    python docs/notebook/prepare.py first-look/
    python docs/notebook/execute.py first-look/

No kernel is needed: cells are plain Python, run in order in one namespace, in the folder that is given.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).with_name("first-look.ipynb")


def run_cells(cells: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Run cells of code in order; yield what each shows: what it prints, and what its last expression is."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.Module(body, []), NOTEBOOK.name, "exec"), names)
            value = None if last is None else eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names)  # pyright: ignore[reportAttributeAccessIssue]
        outputs: list[dict[str, Any]] = []
        if printed.getvalue():
            outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
        if value is not None:
            outputs.append({"output_type": "execute_result", "metadata": {}, "data": _data(value)})
        yield outputs


def _data(value: Any) -> dict[str, list[str]]:
    data = {"text/plain": _lines(repr(value))}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = _lines(value._repr_html_())
    return data


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main(folder: Path) -> None:
    """Run the notebook in a folder, and write it with what it shows."""
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    os.chdir(folder)
    for count, (cell, outputs) in enumerate(zip(code, run_cells(code), strict=True), 1):
        cell["execution_count"] = count
        cell["outputs"] = [o | ({"execution_count": count} if o["output_type"] != "stream" else {}) for o in outputs]
        print("".join(cell["source"]), *outputs, sep="\n", file=sys.stderr)
    text = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True)
    NOTEBOOK.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
