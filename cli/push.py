"""`sculpt push`, and `--push` of the commands that write a model: outputs go to the hub or into an object store."""

from __future__ import annotations

import functools
import inspect
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..fusion.methods import METHODS
from .options import AsJson
from .speech import PLANS

if TYPE_CHECKING:
    from ..fusion.places.push import Upload

PANEL = "Places"
PLACE = "`org/name` on the hub, or a folder in a store: `s3://bucket/name`, `gs://…`, `az://…`."
PUSH = f"Upload the output, shards as they are finished, once you have said yes: {PLACE}"
PUBLIC = "Make a repository that everybody can read; without it is private."
YES = "Upload without asking, where nobody is there to answer."
# Commands whose output is a model's folder or an adapter's.
WRITERS = {
    *METHODS,
    *("fuse", "merge", "repair", "apply", "untie", "lora-merge", "lora-prune", "lora-extract", "lora-train"),
}

Push = Annotated[str | None, typer.Option("--push", metavar="PLACE", help=PUSH, rich_help_panel=PANEL)]
Public = Annotated[bool, typer.Option("--public", help=PUBLIC, rich_help_panel=PANEL)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help=YES, rich_help_panel=PANEL)]


def run_and_push(
    function: Callable[..., None], values: dict[str, Any], *, push: str | None, public: bool, yes: bool, plans: bool
) -> None:
    """Run a command that writes a model, and upload that: what is refused is told before the work begins.

    An output that is named by a URL is put together in the local cache, and goes from there once it is uploaded.

    Raises:
        SculptError: It may not be uploaded, or nobody has said yes.
    """
    from ..fusion.errors import OutputError
    from ..fusion.launch import launched
    from ..fusion.places.names import url_of

    url = None if values.get("output") is None else url_of(str(values["output"]))
    if url is not None and url.scheme == "file":
        from ..fusion.places.names import file_of

        values, url = {**values, "output": file_of(url)}, None
    if url is not None:
        if push is not None:
            raise OutputError(f"the output is `{url}` and is to be pushed to `{push}`", hint="name one of them")
        push, values = str(values["output"]), {**values, "output": _local(url.told, url.name)}
    if push is None:
        if public or yes:
            raise OutputError(f"`{'--public' if public else '--yes'}` has no effect without `--push`")
        function(**values)
        return
    if not launched().is_first:
        function(**values)
        return
    from ..fusion.checkpoint.output.workspace import PUBLISHED
    from ..fusion.places.push import UPLOAD, upload_to

    upload = upload_to(push, public=public)
    published: list[Path] = []
    tokens = UPLOAD.set(None if plans else upload), PUBLISHED.set(published)
    try:
        upload.check(overwrite=bool(values.get("overwrite")) or plans)
        if not plans:
            _ask(upload, public=public, yes=yes)
        function(**values)
        if not plans:
            _finish(upload, values.get("output"), published)
            if url is not None:
                _remove(values["output"])
    finally:
        upload.close()
        UPLOAD.reset(tokens[0])
        PUBLISHED.reset(tokens[1])


def _local(place: str, name: str) -> Path:
    from ..fusion.places.settings import home_of

    return home_of(place, "outgoing") / (name or "output")


def _remove(output: Path) -> None:
    from ..fusion.places.push import files_of

    if output.is_dir():
        shutil.rmtree(output)
    else:
        for file in files_of(output).values():
            file.unlink()


def _finish(upload: Upload, output: Path | None, published: list[Path]) -> None:
    from ..fusion.errors import OutputError
    from .console import say

    written = [path for path in published if path.is_dir() or path.suffix == ".safetensors"]
    made = output if output is not None and output.exists() else next(reversed(written), None)
    if made is None:
        raise OutputError("nothing was written that could be pushed", hint="`sculpt push OUTPUT PLACE` pushes it")
    say(f"pushed to {upload.finish(made)}")


def _ask(upload: Upload, *, public: bool, yes: bool) -> None:
    """Have somebody say yes to an upload.

    Raises:
        OutputError: Nobody has.
    """
    from ..fusion.errors import OutputError
    from ..fusion.places.push import HubUpload

    if yes:
        return
    who = f", {'for everybody' if public else 'private'}" if isinstance(upload, HubUpload) else ""
    if not sys.stdin.isatty():
        raise OutputError(
            f"nobody is there to be asked whether the output may be uploaded to `{upload.told}`{who}",
            hint="`--yes` says that it may",
        )
    if not typer.confirm(f"Upload the output to {upload.told}{who}?", err=True):
        raise OutputError("nothing was done: the output may not be uploaded")


def push_command(
    output: Annotated[Path, typer.Argument(help="A finished output of sculpt, or any model's folder or file.")],
    place: Annotated[str, typer.Argument(help=PLACE)],
    public: Public = False,
    yes: Yes = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that lies there.")] = False,
    json: AsJson = False,
) -> None:
    """Upload an output: to the hub in one commit, private unless said otherwise, or into an object store.

    After an interruption the same command goes on from what is there.

    **Examples**

        sculpt push fused/ org/model-fused --yes

        sculpt push fused/ s3://bucket/model-fused --yes

        sculpt push style.safetensors org/styles --yes --overwrite
    """
    from ..fusion.places.push import refuse_other, upload_to
    from .console import print_json, say

    refuse_other(output)
    upload = upload_to(place, public=public)
    try:
        upload.check(overwrite=overwrite)
        _ask(upload, public=public, yes=yes)
        where = upload.finish(output)
    finally:
        upload.close()
    print_json({"place": upload.told, "at": where}) if json else say(f"pushed to {where}")


def pushing(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command that takes the options of an upload too."""
    signature = inspect.signature(function, eval_str=True)

    @functools.wraps(function)
    def run(*, push: str | None, public: bool, yes: bool, **values: Any) -> None:
        plans = any(values.get(name) for name in PLANS)
        run_and_push(function, values, push=push, public=public, yes=yes, plans=plans)

    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in signature.parameters.values()]
    options = {"push": (Push, None), "public": (Public, False), "yes": (Yes, False)}
    further = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in options.items()
    ]
    del run.__wrapped__
    run.__signature__ = inspect.Signature([*own, *further])  # pyright: ignore[reportAttributeAccessIssue, reportFunctionMemberAccess]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *further)}
    return run


def takes_push(name: str | None, parameters: Mapping[str, Any]) -> bool:
    """Return whether a command writes what can be pushed."""
    return name in WRITERS and "output" in parameters


def register(app: typer.Typer) -> None:
    """Add `push`."""
    app.command("push")(push_command)
