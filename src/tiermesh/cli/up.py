"""`mesh up`: run the daemon in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def up(
    state_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where this node keeps what it must remember. [default: $MESH_STATE_DIR, else the user's]",
            file_okay=False,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="This node's name. [default: the host name]")] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, max=65535, help="Where it listens; 0 is any free one. [default: 8000, or the next free]"
        ),
    ] = None,
    cluster: Annotated[str | None, typer.Option(help="Nodes with the same one form a mesh. [default: home]")] = None,
    tier: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=2, help="0 fast, 1 medium, 2 powerful. [default: by the hardware]"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model that this node runs itself: a name from `mesh model list`, a folder, or ORG/NAME."),
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16"] | None,
        typer.Option(help="What it computes in; auto measures what is faster here. [default: the file's, else auto]"),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="An OpenAI-compatible server to put into the mesh; repeatable."),
    ] = None,
    no_engine: Annotated[
        bool, typer.Option("--no-engine", help="Run no model and serve no server: only route.")
    ] = False,
    no_detect: Annotated[
        bool, typer.Option("--no-detect", help="Don't look for Ollama, LM Studio and llama.cpp on this machine.")
    ] = False,
    interface: Annotated[
        str | None, typer.Option(help="Network interface or address to use. [default: all but loopback]")
    ] = None,
    join: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="A node of the mesh, where mDNS can't find one; repeatable."),
    ] = None,
    usd_per_second: Annotated[
        float | None,
        typer.Option(metavar="USD", min=0, help="What a second of training costs here. [default: by power or device]"),
    ] = None,
    watts: Annotated[
        float | None, typer.Option(metavar="W", min=0, help="This machine's power while it trains.")
    ] = None,
    usd_per_kwh: Annotated[
        float | None, typer.Option(metavar="USD", min=0, help="The tariff; with --watts it gives the price.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="A cluster.yaml. [default: $MESH_CONFIG, ./cluster.yaml, the user's]"),
    ] = None,
    log_format: Annotated[Literal["text", "json"], typer.Option()] = "text",
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option()] = "info",
) -> None:
    """Run this machine's daemon. It joins or founds the mesh, and answers prompts.

    The token of the mesh, if it has one, is taken from $MESH_TOKEN or from the file.
    """
    from tiermesh.config import Flags, resolve_options
    from tiermesh.types import TIERS

    flags = Flags(
        config=config,
        state_dir=state_dir,
        name=name,
        port=port,
        cluster=cluster,
        tier=None if tier is None else TIERS[tier],
        model=model,
        precision=precision,
        engines=tuple(engine or ()),
        no_engine=no_engine,
        no_detect=no_detect,
        interface=interface,
        join=tuple(join or ()),
        usd_per_second=usd_per_second,
        watts=watts,
        usd_per_kwh=usd_per_kwh,
        log_format=log_format,
        log_level=log_level,
    )
    options = resolve_options(flags)
    from tiermesh.daemon.app import run

    raise typer.Exit(run(options))
