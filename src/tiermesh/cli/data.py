"""`mesh data`: what a file would teach, before it is trained on. Needs no daemon."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiermesh.cli import connect
from tiermesh.cli.render import show

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer(help="Files to train on.", no_args_is_help=True, rich_markup_mode=None)

DEFAULT_MODEL = "smollm2:135m"
BAD_SHOWN = 5
"""Lines; `--json` has more of them."""


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="JSON Lines, JSON, CSV, Parquet or plain text.")],
    model: Annotated[
        str | None, typer.Option("--model", help=f"Whose tokens to count. Default: {DEFAULT_MODEL}, if it is here.")
    ] = None,
    seq_len: Annotated[int, typer.Option("--seq-len", min=8, help="Tokens in a row, for the packing.")] = 512,
    as_json: connect.JsonOption = False,
) -> None:
    """Show what a file holds: format, records, token lengths, how they pack, the first bad lines, what is learnt."""
    from tiermesh.adapters.data_inspector import inspect_data
    from tiermesh.adapters.model_source import resolve

    found = resolve(model) if model else _default()
    told = inspect_data(file, tokenizer=found.path if found else None, spec={"seq_len": seq_len})
    told = {"file": str(file), "model": found.name if found else None, **told}
    if as_json:
        print(json.dumps(told, indent=2))
    else:
        show(_page(told))


def _default() -> Any:
    from tiermesh.adapters.model_source import resolve
    from tiermesh.errors import UnknownModel

    try:
        return resolve(DEFAULT_MODEL)
    except UnknownModel:
        return None


def _page(told: Mapping[str, Any]) -> RenderableType:
    from rich.text import Text

    text = Text()
    for name, value in _facts(told):
        text.append(f"{name:<9} ", "bold")
        text.append(f"{value}\n")
    for one in told["bad"][:BAD_SHOWN]:
        text.append(f"  {told['unit']} {one['line']} {one['reason']}\n", "yellow")
    if told["bad_records"] > BAD_SHOWN:
        text.append(f"  and {told['bad_records'] - BAD_SHOWN} more\n", "yellow")
    for document in told.get("sample", ()):
        text.append("\nsample    ", "bold")
        text.append("(what is learnt is between the brackets ⟦ ⟧)\n")
        for stretch in document:
            text.append(f"⟦{stretch['text']}⟧" if stretch["learned"] else stretch["text"], _style(stretch))
        text.append("\n")
    text.rstrip()
    return text


def _style(stretch: Mapping[str, Any]) -> str:
    return "green" if stretch["learned"] else "dim"


def _facts(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    shapes = ", ".join(f"{count:,} {shape}" for shape, count in told["shapes"].items())
    facts = [
        ("file", f"{told['file']}: {told['format']}, fields {', '.join(told['fields']) or 'none'}"),
        ("records", f"{told['records']:,} good ({shapes}), {told['bad_records']:,} bad"),
    ]
    if (lengths := told.get("lengths")) is None:
        return [
            *facts,
            ("tokens", f"unknown: no model is here; name one with --model, or `mesh model pull {DEFAULT_MODEL}`"),
        ]
    long = f", {told['cut']:,} are longer than {told['seq_len']} and are cut" if told["cut"] else ""
    lost = f", {told['unlearnable']:,} have no answer within that" if told["unlearnable"] else ""
    return [
        *facts,
        ("tokens", f"{told['tokens']:,} ({told['model']}), of which {told['targets']:,.0f} are learnt"),
        ("lengths", f"p50 {lengths['p50']}, p95 {lengths['p95']}, max {lengths['max']}{long}{lost}"),
        ("packing", f"{told['rows']:,} rows of {told['seq_len']}, {told['fill']:.1%} of the positions used"),
        ("bad", "none" if not told["bad_records"] else f"{told['bad_records']:,}, first"),
    ]
