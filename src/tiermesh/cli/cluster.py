"""`mesh cluster`: begin a configuration, look at the mesh, prove it."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tiermesh.cli import connect, render
from tiermesh.cli.outcome import FAILED
from tiermesh.errors import InvalidConfig, TiermeshError

if TYPE_CHECKING:
    from tiermesh.cli.checkup import Finding
    from tiermesh.protocol.cluster import ClusterReport

app = typer.Typer(help="Configure, look at and prove the mesh.", no_args_is_help=True, rich_markup_mode=None)

WATCH_S = 1.0
"""Between two looks: fast enough to see a node go, slow enough to read."""


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("cluster.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented cluster.yaml. It loads as it is, and every setting in it is optional."""
    try:
        _write(path, template(), replace=force)
    except FileExistsError:
        raise InvalidConfig(f"{path} is there already; --force replaces it", param="path") from None
    except OSError as error:
        raise InvalidConfig(f"can't write {path}: {error.strerror}", param="path") from error
    print(f"wrote {path}; edit it, then run `mesh up` beside it")


@app.command()
def status(
    as_json: connect.JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again every second, until Ctrl-C.")] = False,
    url: connect.UrlOption = None,
) -> None:
    """Show every node and what it serves. Tier, state, role, models, load, latency, hardware."""
    if watch:
        with suppress(KeyboardInterrupt):
            connect.run(_watch(url, as_json))
        return
    report = connect.run(_report(url))
    if as_json:
        print(report.model_dump_json(indent=2))
    else:
        render.show(render.status(report))


@app.command("test")
def prove(as_json: connect.JsonOption = False, url: connect.UrlOption = None) -> None:
    """Prove every node end to end, and say what to do about what fails. Exit code 1 when anything does."""
    findings = connect.run(_prove(url))
    if as_json:
        rows = [asdict(finding) | {"ok": finding.ok} for finding in findings]
        print(json.dumps({"ok": all(f.ok for f in findings), "findings": rows}, indent=2))
    else:
        render.show(render.findings(findings))
    raise typer.Exit(0 if all(finding.ok for finding in findings) else FAILED)


def template() -> str:
    """The commented cluster.yaml that `init` writes; `cluster.example.yaml` of the repository is the same text."""
    return files("tiermesh.cli").joinpath("cluster.yaml").read_text("utf-8")


def _write(path: Path, text: str, *, replace: bool) -> None:
    """Readable by its owner only: people put tokens into it."""
    mode = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if replace else os.O_EXCL)
    with os.fdopen(os.open(path, mode, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


async def _report(url: str | None) -> ClusterReport:
    async with connect.open_mesh(url) as mesh:
        return await mesh.cluster()


async def _prove(url: str | None) -> list[Finding]:
    from tiermesh.cli.checkup import run_checkup

    async with connect.open_mesh(url) as mesh:
        return await run_checkup(mesh)


async def _watch(url: str | None, as_json: bool) -> None:
    """Look for ever; a node that doesn't answer is reported and asked again."""
    import asyncio

    with render.screen(plain=as_json) as paint:
        while True:
            try:
                report = await _report(url)
            except TiermeshError as error:
                paint(f"{time.strftime('%H:%M:%S')}  {error}")
            else:
                paint(report.model_dump_json() if as_json else render.status(report))
            await asyncio.sleep(WATCH_S)
