"""What was kept of a run's failures, read for somebody elsewhere: the newest one, each part of it cut to a bound.

Whoever wrote it chose what of the environment it holds; nothing is added. Its `spec.json` is not told: a job's spec is
told with the job.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tiermesh.protocol.jobs import CrashKept
from tiermesh.protocol.run_folder import RunFolder

REPORT_BYTES = 256 << 10
"""What a GPU's allocator counts is some 10 KB; one that is larger is not read."""
STACK_BYTES = 128 << 10
"""Beginning and end: a traceback of some pages, and where each thread was."""
EVENTS_BYTES = 256 << 10
"""The last ones; a step is half a KB."""
LOG_BYTES = 64 << 10


def newest_crash(folder: RunFolder) -> CrashKept | None:
    """None: nothing is kept. A part that is missing, or can't be read, is empty. Blocks."""
    try:
        places = sorted(path for path in folder.crash.iterdir() if path.is_dir())
    except OSError:
        return None
    if not places:
        return None
    place = places[-1]
    return CrashKept(
        name=place.name,
        report=_object(_end(place / "report.json", REPORT_BYTES)) or {},
        stack=_both_ends(place / "stack.txt", STACK_BYTES),
        events=[found for line in _end(place / "events.jsonl", EVENTS_BYTES).split(b"\n") if (found := _object(line))],
        log=_whole_lines(_end(place / "worker.log", LOG_BYTES), LOG_BYTES),
    )


def _object(text: bytes) -> dict[str, Any] | None:
    """A JSON object whose figures are all finite or None; None for anything else, as half a line is."""
    try:
        found = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _end(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - limit))
            return file.read(limit)
    except OSError:
        return b""


def _both_ends(path: Path, limit: int) -> str:
    """The whole text where it is no longer than `limit`."""
    try:
        with path.open("rb") as file:
            size, half = file.seek(0, os.SEEK_END), limit // 2
            file.seek(0)
            if size <= limit:
                return file.read(limit).decode("utf-8", "replace")
            first = file.read(half)
            file.seek(size - half)
            last = file.read(half)
    except OSError:
        return ""
    cut = f"\n... {size - 2 * half:,} bytes left out ...\n"
    return cut.join(part.decode("utf-8", "replace") for part in (first, last))


def _whole_lines(text: bytes, limit: int) -> str:
    return (text.partition(b"\n")[2] if len(text) == limit else text).decode("utf-8", "replace")
