"""Make the pages of the site: those of docs/, and those that follow from the code.

    python docs/site/generate.py build/docs

What follows from the code is never committed: each command from its help, each method from its docstring, each recipe
that ships, the public names for mkdocstrings.
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import sculpt
import yaml
from sculpt.cli.app import FAMILIES, OTHER_METHODS, app_of
from sculpt.cli.flags import option_docs
from sculpt.fusion.methods import METHODS, Method
from typer.main import get_command

ROOT = Path(__file__).parents[2]
# What docs/ links to beside itself, and which page of the site it becomes.
BESIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "how-it-is-built.md",
    "benchmarks/RESULTS.md": "measured.md",
    "benchmarks/forgetting/README.md": "forgetting.md",
    "benchmarks/large/README.md": "large.md",
    "docs/notebook/first-look.ipynb": "first-look.md",
}
# Pages that only the site has, which pages of docs/ may link to.
MADE_HERE = ("api.md", "commands.md", "first-look.md", "measured.md", "methods.md", "recipes.md")
LINK = re.compile(r"(\]\(|(?:src|href)=\")([^)#\" ]+)")
ASSETS = (".png", ".svg", ".ipynb", ".yml", ".css")


def pages() -> dict[str, str]:
    """Return the pages, by name, as Markdown."""
    found = {page.name: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))}
    found = {name: relinked(text, ROOT / "docs") for name, text in found.items()}
    for source, name in BESIDE.items():
        if source.endswith(".md") and (ROOT / source).is_file():
            found[name] = relinked((ROOT / source).read_text(encoding="utf-8"), (ROOT / source).parent)
    return found | commands() | methods() | {"recipes.md": recipes(), "api.md": api()}


def relinked(text: str, folder: Path) -> str:
    """Return a page's text with links to pages and pictures of the site; what the site lacks is no link."""

    def replaced(found: re.Match[str]) -> str:
        to = found[2]
        if "://" in to or to.startswith(("mailto:", "data:")) or to in MADE_HERE:
            return found[0]
        target = (folder / to).resolve()
        inside = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else to
        if inside in BESIDE:
            return found[1] + BESIDE[inside]
        return found[1] + (target.name if target.parent == ROOT / "docs" and target.is_file() else f"ABSENT:{inside}")

    text = LINK.sub(replaced, text)
    text = re.sub(r"\[([^\]]*)\]\(ABSENT:[^)]*\)", r"\1", text)
    return "\n".join(_list_of_its_own(text.split("\n")))


def _list_of_its_own(lines: list[str]) -> Iterator[str]:
    """Yield lines with a blank one before each list: GitHub begins a list without, Python-Markdown does not."""
    before = ""
    for line in lines:
        starts = re.match(r"(- |\d+\. )", line)
        if starts and before.strip() and not re.match(r"(- |\d+\. |\s)", before):
            yield ""
        yield line
        before = line


def commands() -> dict[str, str]:
    """Return a page for each command, and one that lists them."""
    root: Any = get_command(app_of())
    panels: dict[str, list[str]] = {panel: [] for panel in (*FAMILIES, OTHER_METHODS)}
    found: dict[str, str] = {}
    for name, command in root.commands.items():
        panels.setdefault(command.rich_help_panel or "Other", []).append(name)
        parts = [f"# sculpt {name}\n"]
        subs = getattr(command, "commands", None)
        if subs is None:
            parts.append(command_page(name, command))
        else:
            parts.append(f"{command.help or ''}\n")
            parts += [f"## sculpt {name} {sub}\n\n{command_page(f'{name} {sub}', one)}" for sub, one in subs.items()]
        found[f"command-{name}.md"] = "\n".join(parts)
    listed = ["# Commands\n", "Each page is the help of the command: `sculpt COMMAND --help` prints the same.\n"]
    for panel, names in panels.items():
        listed.append(f"## {panel}\n\n| command | what it does |\n|---|---|")
        listed += [f"| [`{name}`](command-{name}.md) | {_first(root.commands[name].help)} |" for name in names]
        listed.append("")
    return {**found, "commands.md": "\n".join(listed)}


def command_page(name: str, command: Any) -> str:
    """Return the help of one command: what it does, examples, and a table of options for each panel."""
    about, _, examples = inspect.cleandoc(command.help or "").partition("**Examples**")
    words = [p.make_metavar(None) if hasattr(p, "make_metavar") else p.name.upper() for p in _of(command, "argument")]
    usage = f"    sculpt {name} [OPTIONS] {' '.join(words)}".rstrip()
    parts = [usage, about.strip()]
    if examples.strip():
        typed = re.sub(r"\n\n+", "\n", inspect.cleandoc(examples))
        parts.append(f"**Examples**\n\n```sh\n{typed}\n```")
    panels: dict[str, list[str]] = {}
    for parameter in _of(command, "argument"):
        panels.setdefault("Arguments", []).append(_row(parameter.name.upper(), parameter))
    for parameter in _of(command, "option"):
        flags = ", ".join([*parameter.opts, *parameter.secondary_opts])
        panels.setdefault(parameter.rich_help_panel or "Options", []).append(_row(flags, parameter))
    for panel, rows in panels.items():
        parts.append(f"**{panel}**\n\n| | |\n|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _of(command: Any, kind: str) -> list[Any]:
    return [p for p in command.params if p.param_type_name == kind and not getattr(p, "hidden", False)]


def _row(name: str, parameter: Any) -> str:
    default = parameter.default
    plain = default not in (None, False, True, "", ()) and not callable(default)
    shown = f" Default: `{default}`." if plain and "Default" not in (parameter.help or "") else ""
    return f"| `{name}` | {_cell(parameter.help or '')}{shown} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _first(text: str | None) -> str:
    return _cell(inspect.cleandoc(text or "").partition("\n\n")[0])


def methods() -> dict[str, str]:
    """Return a page of all methods: equations and options of each from its docstring."""
    parts = [
        "# Methods\n",
        "Each entry is what the code says of the method, with its equations; [the methods in one formula]"
        "(one-formula.md) has what they share. Symbols are in the [glossary](glossary.md).\n",
    ]
    parts += [method_entry(name, method) for name, method in METHODS.items()]
    return {"methods.md": "\n".join(parts)}


def method_entry(name: str, method: type[Method]) -> str:
    """Return what a method is, from its class and the docstring of its module."""
    module = inspect.cleandoc(sys.modules[method.__module__].__doc__ or "")
    own = inspect.cleandoc(method.__doc__ or "").partition("Attributes:")[0].strip()
    command = "fuse" if name == "adadare" else name
    where = f"[`sculpt {command}`](command-{command}.md)" if method.max_models != 0 else "in recipes"
    lines = [f"## {method.title} {{#{name}}}\n", f"{where} · `sculpt.{method.__name__}` · {method.source}\n", own, ""]
    lines += [module, ""] if module and not own.startswith(module.split("\n")[0]) else []
    docs = option_docs(method)
    fields = {key: docs[key] for key in getattr(method, "__dataclass_fields__", {}) if key in docs}
    if fields:
        lines.append("| option | |\n|---|---|")
        lines += [f"| `{key}` | {_cell(text)} |" for key, text in fields.items()]
        lines.append("")
    return "\n".join(_list_of_its_own(lines))


def recipes() -> str:
    """Return the recipes that ship: what each says of itself, and the whole of it."""
    parts = [
        "# Recipes\n",
        "`sculpt merge NAME --base base/ --tuned sft/ -o out/` runs one of these by its name, and so does "
        "`--config NAME` on the command of its method. [mergekit's recipes](mergekit.md) run as they are.\n",
    ]
    for file in sorted((ROOT / "configs").glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        assert isinstance(yaml.safe_load(text), Mapping)
        parts.append(f"## {file.stem}\n\n```yaml\n{text.strip()}\n```\n")
    return "\n".join(parts)


def api() -> str:
    """Return the page of public names, for mkdocstrings."""
    functions, classes = [], []
    for name in sorted(sculpt.__all__):
        found = getattr(sculpt, name)
        if isinstance(found, type) and issubclass(found, Method):
            continue
        if name == "evaluate":
            functions.append((name, "sculpt.evaluate.evaluate.evaluate"))
        elif inspect.isfunction(found):
            functions.append((name, f"{found.__module__}.{found.__name__}"))
        else:
            classes.append((name, f"{found.__module__}.{found.__name__}"))
    parts = [
        "# Python\n",
        inspect.cleandoc(sculpt.__doc__ or "").partition("\n\n")[2].strip(),
        "\n[A notebook](first-look.md) shows them at work. Every method is a class too: [methods](methods.md).\n",
    ]
    for title, names in (("Functions", functions), ("Classes", classes)):
        parts.append(f"## {title}\n")
        parts += [
            f'::: {path}\n    options:\n      heading: "sculpt.{name}"\n      toc_label: {name}\n'
            for name, path in names
        ]
    return "\n".join(parts)


def notebook(file: Path) -> str:
    """Return an executed notebook as a page."""
    import json

    parts = []
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "text/html" in data:
                parts.append(f'<div class="output">{"".join(data["text/html"])}</div>')
            else:
                text = "".join(output.get("text", data.get("text/plain", [])))
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def main(folder: Path) -> None:
    """Write all pages and what they show."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    first = ROOT / "docs/notebook/first-look.ipynb"
    if first.is_file():
        (folder / "first-look.md").write_text(notebook(first), encoding="utf-8")
        shutil.copy(first, folder)
    for file in (*(ROOT / "docs").iterdir(), *(ROOT / "docs/site").iterdir()):
        if file.suffix in ASSETS and file.name != "mkdocs.yml":
            shutil.copy(file, folder)
    # mkdocstrings reads the sources as the package that they are, and nothing else that lies there.
    package = folder.parent / "package" / "sculpt"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for place in (*ROOT.glob("*.py"), *(file.parent for file in ROOT.glob("*/__init__.py"))):
        if place.name not in ("tests", "benchmarks"):
            (package / place.name).symlink_to(place)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
