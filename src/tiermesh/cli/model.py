"""`mesh model`: the models that this machine has or could fetch, and what training left on the mesh."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tiermesh.cli import connect
from tiermesh.cli.outcome import say_error
from tiermesh.cli.render import size, table
from tiermesh.errors import DeadlineExceeded, EngineFailed, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tiermesh.adapters.model_source import KnownModel, LocalModel, Progress
    from tiermesh.client import RemoteClient
    from tiermesh.protocol.serving import TrainedList, TrainedModel

T = TypeVar("T")
TrainedName = Annotated[str, typer.Argument(metavar="NAME", help="Of a trained model: its job's name.")]

app = typer.Typer(
    help="The models of this machine, and those that the mesh has trained.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list")
def list_(url: connect.UrlOption = None, as_json: connect.JsonOption = False) -> None:
    """List what can be had and what of it is here; and what the mesh has trained, if a daemon runs here."""
    from tiermesh.adapters.model_source import list_models

    known, trained = list_models(), connect.run(_trained(url))
    if as_json:
        rows = [dataclasses.asdict(one) | {"trained": None} for one in known]
        rows += [{"name": one.name, "local": None, "trained": one.model_dump(mode="json")} for one in trained.models]
        print(json.dumps(rows, indent=2, default=str))
        return
    table(("name", "about", "here", "size", "digest"), [_row(one) for one in known])
    if trained.models:
        print()
        table(("trained", "from", "size", "job", "on", ""), [_trained_row(one) for one in trained.models])
    if trained.unreachable:
        print(f"\n{', '.join(trained.unreachable)} did not answer, and may have others.")


@app.command()
def rm(name: TrainedName, url: connect.UrlOption = None, as_json: connect.JsonOption = False) -> None:
    """Remove a trained model from every node that serves it. Its job keeps its own record and files."""
    report = connect.run(_ask(url, lambda mesh: mesh.remove_model(name)))
    if as_json:
        print(report.model_dump_json(indent=2))
        return
    print(f"{report.name} is removed from {', '.join(report.nodes) or 'no node'}")
    if report.unreachable:
        print(f"{', '.join(report.unreachable)} did not answer, and may still have it")


@app.command()
def pin(
    name: TrainedName,
    off: Annotated[bool, typer.Option("--off", help="Let it make room again.")] = False,
    url: connect.UrlOption = None,
    as_json: connect.JsonOption = False,
) -> None:
    """Keep a trained model where it is, however many come after it."""
    model = connect.run(_ask(url, lambda mesh: mesh.pin_model(name, pinned=not off)))
    if as_json:
        print(model.model_dump_json(indent=2))
    else:
        kept = "is kept" if model.pinned else "may make room for others"
        print(f"{model.name} {kept} on {', '.join(model.nodes)}")


@app.command()
def export(
    name: TrainedName,
    to: Annotated[Path, typer.Option(help="A folder that is not there yet.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="A whole model: the adapter put into its base, which must be here.")
    ] = False,
    url: connect.UrlOption = None,
    as_json: connect.JsonOption = False,
) -> None:
    """Write a trained model's files to a folder: an adapter as peft reads it, or a whole model."""
    from tiermesh.cli.model_export import export_model

    told = export_model(name, to, url=url, merge=merge)
    if as_json:
        print(json.dumps(told, indent=2))
    else:
        print(f"{told['name']} is at {told['folder']}: {told['kind']}, {size(told['size_bytes'])}")


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A name from `mesh model list`, or ORG/NAME on the Hugging Face hub.")],
    as_json: connect.JsonOption = False,
) -> None:
    """Fetch a model to this machine, unless it is here already. May be interrupted and run again."""
    model = _pull(name)
    if as_json:
        print(json.dumps(dataclasses.asdict(model), indent=2, default=str))
    else:
        print(f"{model.name} is at {model.path} ({size(model.size_bytes)})")


@app.command()
def inspect(
    name: Annotated[str, typer.Argument(help="A model that is on this machine: a name, or a folder.")],
    rank: Annotated[int, typer.Option(min=1, max=1024, help="Rank of the adapter that is reckoned with.")] = 16,
    as_json: connect.JsonOption = False,
) -> None:
    """Show a model's layers, and how much of it each way of training it would change."""
    from tiermesh.adapters.layer_inspector import inspect_layers
    from tiermesh.adapters.model_source import resolve

    told = inspect_layers(resolve(name).path, rank=rank)
    if as_json:
        print(json.dumps(told, indent=2))
        return
    print(f"{name}: {told['architecture']}, {told['blocks']} blocks, {told['parameters']:,} parameters\n")
    head = ("layer", "kind", "shape", "count", "parameters", "share", "adapted")
    table(head, [_layer_row(layer, told["parameters"]) for layer in told["layers"]])
    print()
    rows = [(one["method"], f"{one['trained']:,}", f"{one['share']:.2%}") for one in told["methods"]]
    table(("method", "trained", "share"), rows)
    print(f"\nAdapters of rank {told['rank']} on all adapted layers.")


async def _ask(url: str | None, question: Callable[[RemoteClient], Awaitable[T]]) -> T:
    async with connect.open_mesh(url) as mesh:
        return await question(mesh)


async def _trained(url: str | None) -> TrainedList:
    """Nobody is searched for, because the rest of the list needs no daemon; one that was named and is away is told."""
    from tiermesh.protocol.serving import TrainedList

    said, url = url, url or await connect.find_here()
    if url is None:
        return TrainedList(models=[])
    try:
        async with connect.open_mesh(url) as mesh:
            return await mesh.trained_models()
    except (Unavailable, EngineFailed, DeadlineExceeded) as error:
        asked = said or "this machine"
        say_error(f"what the mesh has trained is not known, because no daemon answers at {asked}: {error}")
        return TrainedList(models=[])


def _trained_row(one: TrainedModel) -> tuple[str, ...]:
    where = ", ".join(one.nodes) + ("" if one.shared else " (not shared)")
    return one.name, f"{one.base} ({one.kind})", size(one.size_bytes), one.job, where, "kept" if one.pinned else ""


def _layer_row(layer: Mapping[str, Any], total: int) -> tuple[str, ...]:
    shape = "x".join(map(str, layer["shape"]))
    count, share = f"{layer['parameters']:,}", f"{layer['parameters'] / total:.1%}"
    return layer["name"], layer["kind"], shape, str(layer["count"]), count, share, "yes" if layer["adapted"] else ""


def _pull(name: str) -> LocalModel:
    """Pull with a bar for a person, and in silence for a pipe."""
    from tiermesh.adapters.model_source import pull

    if not sys.stderr.isatty():
        return pull(name)
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(f"looking for {name}", total=None)

        def show(progress: Progress) -> None:
            bars.update(bar, description=f"{progress.stage} {progress.message}", completed=progress.done)
            bars.update(bar, total=progress.total or None)

        return pull(name, show)


def _row(one: KnownModel) -> tuple[str, ...]:
    if one.local is None:
        download = "?" if one.download_bytes is None else size(one.download_bytes)
        return (one.name, one.about, "no", f"{download} to fetch", "")
    return (one.name, one.about, "yes", size(one.local.size_bytes), one.local.digest.removeprefix("sha256:")[:12])
