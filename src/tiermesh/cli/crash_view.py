"""What is kept of a job's failure, for a person."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tiermesh.cli.job_view import clock, labelled
from tiermesh.cli.render import size
from tiermesh.cli.run_view import line_of, step_line
from tiermesh.protocol.training_events import Failed, Phase, StepDone, from_line

if TYPE_CHECKING:
    from tiermesh.protocol.jobs import CrashReport

EVENTS_SHOWN = 20
LOG_SHOWN = 40
"""Lines; with --json there are more of both, and the whole log is told by `mesh jobs logs`."""


def crash_lines(found: CrashReport) -> list[str]:
    """What happened, then where in the code, then what went before."""
    report = found.report
    told = labelled(
        {
            "attempt": f"{found.attempt}, on {found.node}",
            "failure": ": ".join(str(report[name]) for name in ("kind", "message") if report.get(name)),
            "when": clock(_number(report.get("at"))),
            "memory": _memory(report.get("memory")),
            "kept in": f"crash/{found.name} of the attempt's folder",
        }
    )
    parts = {
        "stack": found.stack.rstrip().splitlines(),
        "last events": [line for event in found.events[-EVENTS_SHOWN:] if (line := _event(event))],
        "log": found.log.rstrip().splitlines()[-LOG_SHOWN:],
    }
    for title, lines in parts.items():
        told += ["", title, *(f"  {line}".rstrip() for line in lines)] if lines else []
    return told


def _event(said: Mapping[str, Any]) -> str:
    """Nothing for one that this version does not know."""
    event = from_line(json.dumps(said).encode())
    match event:
        case None:
            return ""
        case StepDone():
            text: str | None = step_line(event)
        case Phase():
            text = f"{event.phase} {event.state}{f': {event.detail}' * bool(event.detail)}"
        case Failed():
            text = f"failed: {event.kind}: {event.message}"
        case _:
            text = line_of(event)
    return f"{clock(event.at)}  {text or event.event}"


def _memory(told: object) -> str:
    if not isinstance(told, Mapping):
        return ""
    peak, machine = _number(told.get("peak_bytes")), _number(told.get("machine_bytes"))
    of = f" of the machine's {size(int(machine))}" if machine else ""
    return f"{size(int(peak))} at most{of}" if peak else ""


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) else None
