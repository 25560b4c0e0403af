"""What a process takes of the machine's memory while it lives, so that its death can be told apart afterwards."""

from __future__ import annotations

from pathlib import Path

import psutil

VMSTAT = Path("/proc/vmstat")


class MemoryWatch:
    """Looks at one process again and again. It may be killed between two looks, so what they show is a lower bound."""

    def __init__(self, pid: int, limit_bytes: int | None) -> None:
        self._pid = pid
        self._limit_bytes = limit_bytes
        self._kills_before = _system_kills()
        self.peak_bytes = 0
        self.share: float | None = None
        """Of the limit, or all that is used of the machine's memory where there is none, at the last look."""

    def look(self) -> None:
        """A tenth of a millisecond; a process that is gone changes nothing."""
        resident = _resident_bytes(self._pid)
        if not resident:
            return
        self.peak_bytes = max(self.peak_bytes, resident)
        self.share = resident / self._limit_bytes if self._limit_bytes else psutil.virtual_memory().percent / 100

    def system_kills(self) -> int | None:
        """Processes that the system killed for their memory since this was made; None where it does not count them."""
        now = _system_kills()
        return None if now is None or self._kills_before is None else now - self._kills_before


def _resident_bytes(pid: int) -> int:
    """With the children that it started; 0 when it is gone."""
    try:
        process = psutil.Process(pid)
        return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def _system_kills() -> int | None:
    try:
        lines = VMSTAT.read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
