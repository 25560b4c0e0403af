"""`mesh health`: how every machine is, one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tiermesh.cli import connect, render
from tiermesh.cli.outcome import FAILED

if TYPE_CHECKING:
    from tiermesh.protocol.health import GpuVitalsReport, MeshHealthReport, NodeHealthReport, VitalsReport

COLUMNS = ("name", "health", "cpu", "memory", "disk", "gpu", "latency", "about")


def health(
    as_json: connect.JsonOption = False,
    history: Annotated[bool, typer.Option("--history", help="With --json: what each node remembers as well.")] = False,
    url: connect.UrlOption = None,
) -> None:
    """Ask every node how it is. Score, processor, memory, disk, GPUs, latency, alerts. Exit code 1 when critical."""
    report = connect.run(_report(url, history))
    if as_json:
        print(report.model_dump_json(indent=2))
    else:
        print(headline(report))
        print()
        render.table(COLUMNS, map(_row, report.nodes))
    raise typer.Exit(FAILED if report.level == "critical" else 0)


def headline(report: MeshHealthReport) -> str:
    """`warning · 3 of 4 nodes answer desk · unreachable: attic`."""
    silent = [node.name for node in report.nodes if node.now is None]
    count = len(report.nodes)
    answering = f"{count - len(silent)} of {count} nodes answer {report.node}"
    return " · ".join([report.level, answering, *([f"unreachable: {', '.join(silent)}"] if silent else [])])


async def _report(url: str | None, history: bool) -> MeshHealthReport:
    async with connect.open_mesh(url) as mesh:
        return await mesh.mesh_health(history=history)


def _row(node: NodeHealthReport) -> tuple[str, ...]:
    now = node.now
    if now is None:
        return (node.name, "unreachable", "-", "-", "-", "-", "-", node.problem or "")
    return (
        node.name,
        f"{node.health} {now.score}" + (" (draining)" if node.state == "draining" else ""),
        _share(now.cpu_percent, now.cpu_temperature_c),
        _part(now.memory_used_bytes, now.memory_bytes),
        _part(now.disk_used_bytes, now.disk_bytes),
        _gpus(now),
        "-" if not node.round_trip_ms else f"{node.round_trip_ms:.1f} ms",
        "; ".join(alert.message for alert in now.alerts),
    )


def _gpus(now: VitalsReport) -> str:
    return ", ".join(map(_gpu, now.gpus)) or "-"


def _gpu(gpu: GpuVitalsReport) -> str:
    """Only what is known."""
    facts = (
        gpu.name,
        _share(gpu.used_percent, gpu.temperature_c),
        _part(gpu.memory_used_bytes, gpu.memory_bytes),
        "-" if gpu.power_w is None else f"{gpu.power_w:.0f} W",
    )
    return " ".join(fact for fact in facts if fact != "-")


def _share(percent: float | None, temperature_c: float | None) -> str:
    known = [] if percent is None else [f"{percent:.0f} %"]
    known += [] if temperature_c is None else [f"{temperature_c:.0f} °C"]
    return " ".join(known) or "-"


def _part(used: int | None, whole: int | None) -> str:
    return "-" if used is None or not whole else f"{render.size(used)} of {render.size(whole)}"
