"""What a person sees: tables and short words for numbers. Rich is loaded when something is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from tiermesh.cli.checkup import Finding
    from tiermesh.protocol.cluster import ClusterReport, HardwareReport, ModelReport, NodeReport

PIPE_WIDTH = 200
"""Columns of a table when nobody's terminal sets a limit: wide enough that nothing is wrapped."""

WRAPPED = ("models", "hardware", "about")
"""Columns that a narrow terminal breaks into lines; the others are short, and of use only when whole."""

NAMES_SHOWN = 8
"""More names than this are a number."""

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

STATE_STYLES = {"up": "green", "draining": "yellow", "down": "red"}


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a plain table."""
    show(_table(columns, rows))


def show(what: RenderableType) -> None:
    """Print for a person, or for a pipe without colours and without wrapping."""
    _console().print(what)


@contextmanager
def screen(*, plain: bool) -> Iterator[Callable[[RenderableType], None]]:
    """Paint again and again on a person's screen; `plain`, or into a pipe, one after the other."""
    console = _console()
    if plain or not console.is_terminal:
        yield lambda what: print(what, flush=True) if plain else console.print(what)
        return
    from rich.live import Live

    with Live(console=console, auto_refresh=False, screen=True) as live:
        yield lambda what: live.update(what, refresh=True)


def status(report: ClusterReport) -> RenderableType:
    """`mesh cluster status`: one line about the mesh, one row a node."""
    from rich.console import Group
    from rich.text import Text

    labels = node_labels(report)
    rows = [_node_row(node, labels[node.id], report.self) for node in sorted(report.nodes, key=_rank)]
    return Group(Text(headline(report)), Text(), _table(NODE_COLUMNS, rows))


def node_labels(report: ClusterReport) -> dict[str, str]:
    """What a person calls each node, by id: its name, with the id's beginning where two have the same name."""
    names = [node.name for node in report.nodes]
    return {n.id: n.name if names.count(n.name) == 1 else f"{n.name} {n.id[:8]}" for n in report.nodes}


def findings(found: Sequence[Finding]) -> RenderableType:
    """`mesh cluster test`: what was checked of each node, and for what failed the likely cause and the remedy."""
    from rich.text import Text

    text = Text()
    for name in dict.fromkeys(finding.node for finding in found):
        text.append(f"{name}\n", "bold")
        for finding in (f for f in found if f.node == name and not (f.ok and f.asker)):
            text.append("  ✓ " if finding.ok else "  ✗ ", "green" if finding.ok else "red")
            text.append(f"{finding.check}: {finding.detail}\n")
            if finding.advice is not None:
                text.append(f"      likely: {finding.advice.cause}\n      do: {finding.advice.remedy}\n", "yellow")
        if askers := _content_askers(found, name):
            text.append("  ✓ ", "green").append(f"is reached at every address by: {askers}\n")
    failed = sum(not finding.ok for finding in found)
    text.append(f"{failed} of {len(found)} checks failed" if failed else f"all {len(found)} checks passed", "bold")
    return text


def _content_askers(found: Sequence[Finding], name: str) -> str:
    """The nodes that reach `name` at all its addresses, by name while they are few."""
    askers = dict.fromkeys(f.asker for f in found if f.node == name and f.asker)
    content = [a for a in askers if a and all(f.ok for f in found if f.node == name and f.asker == a)]
    return ", ".join(content) if len(content) <= NAMES_SHOWN else f"{len(content)} nodes"


def headline(report: ClusterReport) -> str:
    """`home · 3 up, 1 down · coordinator server · open: anyone on this network may ask`."""
    counts = [(state, sum(node.state == state for node in report.nodes)) for state in STATE_STYLES]
    leader = f"coordinator {report.coordinator.name}" if report.coordinator else "no coordinator at the moment"
    access = "open: anyone on this network may ask" if report.open else "token required"
    return " · ".join((report.cluster, ", ".join(f"{n} {state}" for state, n in counts if n), leader, access))


def size(count_bytes: float) -> str:
    """`2.4 GB`, in powers of 1000 as disks and downloads are sold."""
    unit = next((u for u in UNITS if abs(count_bytes) < 1000 * UNITS[u]), "TB")
    figure = count_bytes / UNITS[unit]
    return f"{figure:.0f} {unit}" if figure >= 100 or unit == "B" else f"{figure:.1f} {unit}"


NODE_COLUMNS = ("name", "tier", "state", "role", "models", "load", "health", "latency", "hardware")


def _node_row(node: NodeReport, label: str, asked: str) -> tuple[str, ...]:
    alive = node.state != "down"
    return (
        label + (" (asked)" if node.id == asked else ""),
        "-" if node.tier is None else str(node.tier),
        node.state + (f", trains {node.training}" if node.training else ""),
        node.role,
        _models(node),
        _load(node) if alive else "-",
        _health(node),
        f"{node.latency_ms:.1f} ms" if alive and node.latency_ms is not None else "-",
        _hardware(node.hardware),
    )


def _models(node: NodeReport) -> str:
    return ", ".join(dict.fromkeys(model.name + _model_state(model) for model in node.models)) or "-"


def _model_state(model: ModelReport) -> str:
    if model.breaker == "open":
        return f" (failing, next try in {model.retry_after_s:.0f} s)"
    if model.state == "warm":
        return " (on probation)" if model.breaker == "half_open" else ""
    return f" ({model.state})" if model.progress is None else f" ({model.state} {model.progress:.0%})"


def _load(node: NodeReport) -> str:
    waiting = f" +{node.load.queued}" if node.load.queued else ""
    return f"{node.load.active}/{node.load.slots}{waiting}" if node.load.slots else "-"


def _health(node: NodeReport) -> str:
    """With what is wrong: `degraded (memory)`; a critical alert ends in `!`."""
    health = node.health
    if health.state == "unknown":
        return "-"
    return health.state + (f" ({', '.join(health.alerts)})" if health.alerts else "")


def _hardware(hardware: HardwareReport) -> str:
    """Only what is known."""
    gpus = [gpu.name + (f" {gpu.memory_bytes / 2**30:.0f} GiB" if gpu.memory_bytes else "") for gpu in hardware.gpus]
    cores = [f"{hardware.cores} cores"] if hardware.cores else []
    memory = [f"{hardware.ram_bytes / 2**30:.0f} GiB"] if hardware.ram_bytes else []
    return ", ".join(gpus + cores + memory) or "unknown"


def _rank(node: NodeReport) -> tuple[bool, bool, str]:
    return (node.state == "down", node.role != "coordinator", node.name)


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in columns:
        made.add_column(name, no_wrap=name not in WRAPPED, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell, style=STATE_STYLES.get(cell, "")) for cell in row))
    return made
