"""`GET /api/health`: how every node of the mesh is, asked just now."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tiermesh.protocol.validation import Wire
from tiermesh.types import HealthState, MemberState


class GpuVitalsReport(Wire):
    """One accelerator now; None is unknown."""

    name: str
    used_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None


class ProcessReport(Wire):
    """The daemon and the processes that it started."""

    memory_bytes: int
    processes: int
    uptime_s: float


class AlertReport(Wire):
    """What a person must know."""

    name: str
    level: Literal["warning", "critical"]
    message: str


class VitalsReport(Wire):
    """One look at one machine; None is unknown. `at` is Unix time by its own clock, `latency_ms` the round trip to the
    coordinator; `score` and `alerts` are what the look meant."""

    at: float
    cpu_percent: float | None = None
    cpu_temperature_c: float | None = None
    memory_used_bytes: int | None = None
    memory_bytes: int | None = None
    disk_used_bytes: int | None = None
    disk_bytes: int | None = None
    power_w: float | None = None
    on_battery: bool | None = None
    gpus: list[GpuVitalsReport] = Field(default_factory=list)
    process: ProcessReport | None = None
    latency_ms: float | None = None
    engines_ready: int = 0
    engines_down: int = 0
    score: int
    alerts: list[AlertReport] = Field(default_factory=list)


class LooksReport(Wire):
    """What one node tells of itself: a fresh look, and the ones before when they were asked for, oldest first."""

    now: VitalsReport
    history: list[VitalsReport] = Field(default_factory=list)


class NodeHealthReport(Wire):
    """One node. Exactly one of `problem` (why it could not be asked) and `now` is there.

    `health` is the word for the score of `now`, `unknown` without one. `round_trip_ms` is what this question took.
    """

    id: str
    name: str
    state: MemberState
    health: HealthState
    round_trip_ms: float | None = None
    problem: str | None = None
    now: VitalsReport | None = None
    history: list[VitalsReport] = Field(default_factory=list)


class MeshHealthReport(Wire):
    """All nodes, in the order of `/api/cluster`. `critical`: a critical alert somewhere, or more than half of the nodes
    score under 50 or can't be reached. `node` is the one that asked."""

    node: str
    level: Literal["ok", "warning", "critical"]
    nodes: list[NodeHealthReport]
