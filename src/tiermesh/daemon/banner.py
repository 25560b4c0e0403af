"""The start-up block: what a person needs to know about the daemon that has just come up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiermesh.hardware.profile import GIB
from tiermesh.types import EngineInfo, Hardware, Model, NodeId, Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that the block shows."""

    version: str
    name: str
    node_id: NodeId
    cluster: str
    urls: Sequence[str]
    moved_from: int | None
    """The usual port, when it was taken."""
    open: bool
    tier: Tier | None
    tier_reason: str
    hardware: Hardware
    engines: Sequence[EngineInfo]
    no_engine_reason: str
    models: Sequence[Model]
    discovery: str


def lines(facts: Facts) -> str:
    """The block, one fact a line, ready to print."""
    rows = [
        ("node", f"{facts.name}  ({facts.node_id})"),
        ("cluster", f"{facts.cluster}, {_trust(facts.open)}"),
        ("address", "  ".join(facts.urls) + _moved(facts.moved_from)),
        ("discovery", facts.discovery),
        ("tier", f"{facts.tier}  ({facts.tier_reason})" if facts.tier is not None else "none: this node has no engine"),
        ("hardware", hardware_line(facts.hardware)),
        ("engines", ", ".join(f"{e.name} ({e.kind})" for e in facts.engines) or f"none ({facts.no_engine_reason})"),
        ("models", _models(facts)),
    ]
    return "\n".join([f"Tiermesh {facts.version}", *(f"  {label:<10} {text}" for label, text in rows)])


def hardware_line(hardware: Hardware) -> str:
    """The machine in a few words; what is unknown is left out."""
    parts = [hardware.cpu_model, f"{hardware.cores} cores" if hardware.cores else None]
    parts.append(f"{hardware.ram_bytes / GIB:.0f} GiB" if hardware.ram_bytes else None)
    parts += [f"{g.name} {g.memory_bytes / GIB:.0f} GiB" if g.memory_bytes else g.name for g in hardware.gpus]
    return ", ".join(part for part in parts if part) or "unknown"


def _models(facts: Facts) -> str:
    named = ", ".join(f"{m.name} (tier {m.tier})" for m in facts.models)
    return named or ("none yet" if facts.engines else "none of its own: other nodes answer what it is asked")


def _trust(is_open: bool) -> str:
    if not is_open:
        return "a token is demanded"
    return "OPEN: anybody on this network may use it (set MESH_TOKEN on every node to close it)"


def _moved(port: int | None) -> str:
    return "" if port is None else f"  (port {port} was taken)"
