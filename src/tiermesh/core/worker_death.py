"""How a training worker ended: by its own will, by a fault, or because the system wanted its memory back. Pure.

The system says nothing to the one it kills, so three witnesses are asked: the counter of kills (of the worker's own
cgroup, else of the whole machine), the signal, and what the worker said of its memory last.

| exit | evidence | means |
|---|---|---|
| 0, 3, 75 | | done, failed (a typed failure is in the events), stopped (goes on when started again) |
| SIGKILL | the counter rose, or the last memory was near the limit | out of memory |
| SIGKILL | neither | killed by somebody: it goes on when started again |
| any other signal or status | the last memory was near the limit | out of memory: a library that is refused aborts |
| any other | | crashed |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ending = Literal["done", "failed", "stopped", "out_of_memory", "killed", "crashed"]

SIGKILL = 9
SHELL_SIGNALS = 128
"""Added to the signal's number where a shell stands between."""

NEAR = 0.9
"""Share of the limit that was in use when it said so last. What it was refused then is not in that figure."""

CGROUP_VARIABLE = "TIERMESH_CGROUP"
"""Names a cgroup folder in which workers may make their own; nobody else's tree is written to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of the dead. None is unknown."""

    returncode: int
    """As `subprocess` tells it: negative for a signal."""
    memory_share: float | None = None
    """Of its limit, as its last event told."""
    system_kills: int | None = None
    """By how much the system's counter of kills for memory rose since the worker began."""


def ending_of(evidence: Evidence) -> Ending:
    """The table above."""
    code = evidence.returncode
    signal = -code if code < 0 else code - SHELL_SIGNALS if code > SHELL_SIGNALS else None
    near = evidence.memory_share is not None and evidence.memory_share >= NEAR
    match code:
        case 0:
            return "done"
        case 3:
            return "failed"
        case 75:
            return "stopped"
    if signal == SIGKILL:
        return "out_of_memory" if near or evidence.system_kills else "killed"
    return "out_of_memory" if near else "crashed"


def cgroup_name(pid: int) -> str:
    """Of a worker's own cgroup, below the one that `CGROUP_VARIABLE` names."""
    return f"tiermesh-train-{pid}"
