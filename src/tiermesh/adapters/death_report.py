"""What is kept of a worker that was killed or crashed, and so could not report itself: one folder under `crash/`.

report.json     how it died, the memory as it was seen from outside, the machine
events.jsonl    the last events
worker.log      the last lines; a fatal signal leaves the stacks of all threads there
spec.json       what was run
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import psutil

from tiermesh.protocol.run_folder import RunFolder

LAST_LINES = 200
"""Of events and log: some minutes, and a few pages."""
KEPT = 5
"""Reports of one run; the newest. A row of equal deaths tells no more than its last ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """As it was seen. `memory_share` is of the limit, or of the machine where there is none; None is unknown."""

    kind: str
    message: str
    pid: int
    returncode: int
    peak_bytes: int
    memory_share: float | None
    system_kills: int | None


def write_death_report(folder: RunFolder, death: Death) -> str | None:
    """Gives the report's name under `crash/`; None when the disk refuses, which is no reason to fail once more."""
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{death.pid}"
    try:
        place = folder.crash / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "report.json").write_text(json.dumps(_report(death), indent=1) + "\n", "utf-8")
        for source in (folder.events, folder.log, folder.older_log):
            _copy_end(source, place / source.name)
        if folder.plan.exists():
            shutil.copyfile(folder.plan, place / folder.plan.name)
        for old in sorted(folder.crash.iterdir())[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError:
        return None
    return name


def _report(death: Death) -> dict[str, object]:
    machine = psutil.virtual_memory()
    return {
        "kind": death.kind,
        "message": death.message,
        "at": time.time(),
        "pid": death.pid,
        "returncode": death.returncode,
        "memory": {
            "peak_bytes": death.peak_bytes,
            "share_of_limit": death.memory_share,
            "system_kills": death.system_kills,
            "machine_bytes": machine.total,
            "available_bytes": machine.available,
        },
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
        },
    }


def _copy_end(source: Path, target: Path) -> None:
    if source.exists():
        with source.open("rb") as lines:
            target.write_bytes(b"".join(deque(lines, LAST_LINES)))
