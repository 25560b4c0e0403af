"""How well a machine is: a score, alerts, and how often to look. Pure.

    score = 100 - the points that each rule of `RULES` takes away

A rule takes nothing up to `fine`, all its `points` from `bad` on, and in between its share of the way. What is unknown
takes nothing. Being busy is what the machines are for, so load takes little: how full a node is, routing knows better
and sooner. What counts is what makes an answer fail, or the machine suffer.

| figure | fine | bad | points | warning | critical |
|---|---|---|---|---|---|
| memory used, % | 85 | 97 | 40 | 92 | 97 |
| CPU used, % | 90 | 100 | 10 | - | - |
| GPU used, % | 95 | 100 | 5 | - | - |
| GPU memory used, % | 95 | 100 | 10 | - | - |
| GPU temperature, deg C | 80 | 95 | 40 | 87 | 95 |
| CPU temperature, deg C | 85 | 100 | 30 | 92 | 100 |
| disk used, % | 90 | 99 | 30 | 95 | 99 |
| round trip to the coordinator, ms | 50 | 500 | 20 | 500 | - |
| engines down, % of all | 0 | 100 | 60 | 1 | - |

Engines like vLLM take nearly all of a GPU's memory by design: being full is no alert. Of several GPUs the worst counts.
80 and up is healthy, 60 and up degraded, else unhealthy: one bad thing degrades, two bad ones or no engine left make
unhealthy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tiermesh.types import Health, HealthState

Level = Literal["warning", "critical"]

HEALTHY = 80
DEGRADED = 60
LOW = 50
"""Under this score a node counts as lost for the whole mesh's level."""

STEP = 5
"""Points by which a score must have moved to be told to all: each telling is a new view for everybody."""

CALM_S = 30.0
"""What got worse is told at once; what got better not sooner than this after what was told last."""

DRIFT_S = 300.0
"""The same for a score that moved within its word: routing reads the word alone, and a processor's load comes and
goes."""


@dataclass(frozen=True, slots=True)
class GpuVitals:
    """One accelerator now; None is unknown."""

    name: str
    used_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None


@dataclass(frozen=True, slots=True)
class ProcessVitals:
    """The daemon and the processes that it started."""

    memory_bytes: int
    processes: int
    uptime_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """One look at one machine; None is unknown. Percentages are 0 to 100."""

    at: float
    """Unix time, seconds."""
    cpu_percent: float | None = None
    cpu_temperature_c: float | None = None
    memory_used_bytes: int | None = None
    memory_bytes: int | None = None
    disk_used_bytes: int | None = None
    disk_bytes: int | None = None
    power_w: float | None = None
    """Drawn by the whole machine or its processors, where it can be read."""
    on_battery: bool | None = None
    gpus: tuple[GpuVitals, ...] = ()
    process: ProcessVitals | None = None
    latency_ms: float | None = None
    """Round trip to the coordinator."""
    engines_ready: int = 0
    engines_down: int = 0


@dataclass(frozen=True, slots=True)
class Alert:
    """What a person must know. `name` is the rule's."""

    name: str
    level: Level
    message: str


@dataclass(frozen=True, slots=True)
class Rule:
    """What a figure takes from the score, and from when on it is an alert."""

    name: str
    message: str
    """With `{0}` for the figure."""
    fine: float
    bad: float
    points: float
    warning: float | None = None
    critical: float | None = None

    def taken(self, figure: float) -> float:
        """Points taken away."""
        way = (figure - self.fine) / (self.bad - self.fine)
        return self.points * min(max(way, 0.0), 1.0)

    def alert(self, figure: float) -> Alert | None:
        """The alert that the figure is, if it is one."""
        if self.critical is not None and figure >= self.critical:
            return Alert(self.name, "critical", self.message.format(figure))
        if self.warning is not None and figure >= self.warning:
            return Alert(self.name, "warning", self.message.format(figure))
        return None


RULES: tuple[Rule, ...] = (
    Rule("memory", "{0:.0f} % of the memory is in use", 85, 97, 40, 92, 97),
    Rule("cpu", "the processors are {0:.0f} % busy", 90, 100, 10),
    Rule("gpu", "a GPU is {0:.0f} % busy", 95, 100, 5),
    Rule("gpu_memory", "{0:.0f} % of a GPU's memory is in use", 95, 100, 10),
    Rule("gpu_temperature", "a GPU is at {0:.0f} °C", 80, 95, 40, 87, 95),
    Rule("cpu_temperature", "the processor is at {0:.0f} °C", 85, 100, 30, 92, 100),
    Rule("disk", "the disk of the state folder is {0:.0f} % full", 90, 99, 30, 95, 99),
    Rule("latency", "{0:.0f} ms to the coordinator and back", 50, 500, 20, 500),
    Rule("engines", "{0:.0f} % of the engines are down", 0, 100, 60, 1),
)


def assess(vitals: Vitals) -> tuple[int, tuple[Alert, ...]]:
    """Score, 0 to 100, and alerts, critical ones first."""
    figures = _figures(vitals)
    taken, alerts = 0.0, []
    for rule in RULES:
        figure = figures.get(rule.name)
        if figure is not None:
            taken += rule.taken(figure)
            if (alert := rule.alert(figure)) is not None:
                alerts.append(alert)
    return max(0, round(100 - taken)), tuple(sorted(alerts, key=lambda alert: alert.level != "critical"))


def state_of(score: int | None) -> HealthState:
    """The word for a score."""
    if score is None:
        return "unknown"
    return "healthy" if score >= HEALTHY else "degraded" if score >= DEGRADED else "unhealthy"


def told(score: int, alerts: Iterable[Alert], on_battery: bool = False) -> Health:
    """What the mesh is told of an assessment."""
    return Health(score, tuple(a.name + "!" * (a.level == "critical") for a in alerts), on_battery)


def is_news(before: Health, now: Health, calm_s: float) -> bool:
    """Shall `now` replace what was told `before`, `calm_s` seconds ago?"""
    if before.score is None or now.score is None or before.on_battery != now.on_battery:
        return before != now
    if state_of(now.score) != state_of(before.score) or set(now.alerts) != set(before.alerts):
        worse = now.score < before.score or not set(now.alerts) <= set(before.alerts)
        return worse or calm_s >= CALM_S
    return abs(now.score - before.score) >= STEP and calm_s >= DRIFT_S


def mesh_level(scores: Iterable[int | None], alerts: Iterable[Level]) -> Literal["ok", "warning", "critical"]:
    """How urgent the whole is. A node that can't be reached has score 0; one of unknown score counts as well."""
    counted, levels = [100 if score is None else score for score in scores], set(alerts)
    if "critical" in levels or 2 * sum(score < LOW for score in counted) > len(counted):
        return "critical"
    return "warning" if levels or any(score < HEALTHY for score in counted) else "ok"


def look_interval_s(*, busy: bool, idle_s: float) -> float:
    """Seconds from one look to the next: a machine at work can get hot in seconds, one left alone all night can't."""
    if busy:
        return 5.0
    return 10.0 if idle_s < 30 * 60 else 20.0 if idle_s < 2 * 3600 else 40.0


def _figures(vitals: Vitals) -> dict[str, float | None]:
    gpus, engines = vitals.gpus, vitals.engines_ready + vitals.engines_down
    return {
        "memory": _percent(vitals.memory_used_bytes, vitals.memory_bytes),
        "cpu": vitals.cpu_percent,
        "gpu": _worst(gpu.used_percent for gpu in gpus),
        "gpu_memory": _worst(_percent(gpu.memory_used_bytes, gpu.memory_bytes) for gpu in gpus),
        "gpu_temperature": _worst(gpu.temperature_c for gpu in gpus),
        "cpu_temperature": vitals.cpu_temperature_c,
        "disk": _percent(vitals.disk_used_bytes, vitals.disk_bytes),
        "latency": vitals.latency_ms,
        "engines": _percent(vitals.engines_down, engines),
    }


def _percent(part: int | None, whole: int | None) -> float | None:
    return None if part is None or not whole else 100.0 * part / whole


def _worst(figures: Iterable[float | None]) -> float | None:
    return max((figure for figure in figures if figure is not None), default=None)
