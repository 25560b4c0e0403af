"""What was measured on, and how quiet it was."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import psutil

PACKAGES = ("torch", "transformers", "peft", "trl")
BUSY = 0.1
"""Share of all processors used by others, from which on figures are theirs as well."""
LOOK_S = 2.0


def described(threads: int) -> str:
    """One line."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    amx = " with AMX" if any("amx_bf16" in line for line in lines) else ""
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return f"{name}{amx}, {threads} of {os.cpu_count()} threads; Python {platform.python_version()}, {packages}"


def used_by_others() -> float:
    """The share of all processors, while we do nothing."""
    return psutil.cpu_percent(LOOK_S) / 100


class Others:
    """How much of the processors others took while we measured."""

    def __init__(self) -> None:
        self._began, self._ours, self._all = time.monotonic(), _ours_s(), _busy_s()

    def share(self) -> float:
        """Since it was made, of all processors; children of ours that live are ours."""
        seconds = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return max(0.0, (_busy_s() - self._all) - (_ours_s() - self._ours)) / seconds


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _ours_s() -> float:
    me = psutil.Process()
    own = me.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in me.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return float(total)
