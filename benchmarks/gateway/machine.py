"""What was measured on, and how quiet it was."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import psutil

PACKAGES = ("aiohttp", "uvloop", "tiermesh")
BUSY = 0.1
"""Share of all processors used by others, from which on figures are theirs as well."""

LOOK_S = 1.0


def described() -> str:
    """One line."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return f"{name}, {os.cpu_count()} processors; Python {platform.python_version()}, {packages}"


def wait_until_idle(patience_s: float) -> float:
    """The share of the processors that others use, as soon as it is little, or when patience ends."""
    ends = time.monotonic() + patience_s
    while (share := psutil.cpu_percent(LOOK_S) / 100) > BUSY and time.monotonic() < ends:
        pass
    return share
