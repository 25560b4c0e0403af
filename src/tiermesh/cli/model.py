"""`mesh model`: the models that this machine has, or could fetch."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiermesh.cli import connect
from tiermesh.cli.render import size, table

if TYPE_CHECKING:
    from tiermesh.adapters.model_source import KnownModel, LocalModel, Progress

app = typer.Typer(help="The models of this machine.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_(as_json: connect.JsonOption = False) -> None:
    """List what can be had, and what of it is here. Needs no daemon."""
    from tiermesh.adapters.model_source import list_models

    known = list_models()
    if as_json:
        print(json.dumps([dataclasses.asdict(one) for one in known], indent=2, default=str))
        return
    table(("name", "about", "here", "size", "digest"), [_row(one) for one in known])


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
