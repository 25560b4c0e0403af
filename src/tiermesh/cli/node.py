"""`mesh node`: let one node rest, work again, or go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tiermesh.cli import connect

if TYPE_CHECKING:
    from tiermesh.protocol.cluster import NodeOrderReport

app = typer.Typer(help="Let one node rest, work again, or go.", no_args_is_help=True, rich_markup_mode=None)

DRAINED = "prompts there are finished, and a job that trains there stops at a checkpoint and goes on elsewhere"

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The node's name, or its id.")]


@app.command()
def drain(name: NameArgument, as_json: connect.JsonOption = False, url: connect.UrlOption = None) -> None:
    """Send a node no new work until `mesh node resume`; it stays in the mesh. Prompts that it answers are finished. A
    job that trains there stops at a checkpoint, and goes on at another node, or waits for one."""
    _give("drain", name, url, as_json, f"{{}} takes no new work; {DRAINED}")


@app.command()
def resume(name: NameArgument, as_json: connect.JsonOption = False, url: connect.UrlOption = None) -> None:
    """Let a drained node work again."""
    _give("resume", name, url, as_json, "{} takes work again")


@app.command()
def remove(name: NameArgument, as_json: connect.JsonOption = False, url: connect.UrlOption = None) -> None:
    """Take a node out of the mesh. A daemon that still runs there ends; started again, it joins again."""
    _give("remove", name, url, as_json, "{} is removed")


def _give(order: Literal["drain", "resume", "remove"], name: str, url: str | None, as_json: bool, said: str) -> None:
    report = connect.run(_ordered(order, name, url))
    print(report.model_dump_json(indent=2) if as_json else said.format(report.node.name))


async def _ordered(order: Literal["drain", "resume", "remove"], name: str, url: str | None) -> NodeOrderReport:
    async with connect.open_mesh(url) as mesh:
        return await mesh.order(order, name)
