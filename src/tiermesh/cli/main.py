"""The command `mesh`. Nothing heavy is imported before a command that needs it runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from tiermesh.cli import ask, cluster, config, data, health, jobs, model, node, route, train, up
from tiermesh.cli.outcome import FAILED, MeshGroup, say_error

app = typer.Typer(
    name="mesh",
    cls=MeshGroup,
    help="Any node, one URL; the best machine does the work; pull any plug.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up")(up.up)
app.command("ask")(ask.ask)
app.command("route")(route.route)
app.command("health")(health.health)
app.add_typer(cluster.app, name="cluster")
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")
app.add_typer(jobs.app, name="jobs")
app.add_typer(model.app, name="model")
app.add_typer(node.app, name="node")
app.add_typer(train.app, name="train")


@app.command("demo")
def demo(
    keep_logs: Annotated[
        bool, typer.Option("--keep-logs", help="When a step fails, print what the daemons said.")
    ] = False,
    train: Annotated[bool, typer.Option(help="Show the second act too, which fine-tunes for some minutes.")] = True,
) -> None:
    """Show a mesh of three daemons on this machine. It is formed, asked, hit, taught, hit again, and asked again."""
    from tiermesh.cli.demo import run

    raise typer.Exit(run(keep_logs=keep_logs, train=train))


def _show_version(wanted: bool) -> None:
    if wanted:
        from tiermesh import __version__

        print(f"mesh {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Any node, one URL; the best machine does the work; pull any plug."""


def main() -> None:
    """Entry point of the `mesh` script. Whatever goes wrong, a person gets a sentence."""
    try:
        app(prog_name="mesh")
    except Exception as error:
        if os.environ.get("MESH_DEBUG"):
            raise
        say_error(f"internal error: {type(error).__name__}: {error}. Set MESH_DEBUG=1 to see where")
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
