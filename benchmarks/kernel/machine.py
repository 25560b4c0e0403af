"""What was measured on, and how quiet it was."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

from tiermesh.kernel.inference.threads import default_threads

PACKAGES = ("torch", "transformers", "xllamacpp")
BUSY = 0.3
"""Load above which figures are another program's as well."""


def has_amx() -> bool:
    """Does this processor multiply bf16 matrices in tiles?"""
    return "amx_bf16" in _cpuinfo()


def described() -> str:
    """One line."""
    lines = _cpuinfo().splitlines()
    name = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return f"{name}{' with AMX' if has_amx() else ''}, {default_threads()} threads; {packages}"


def load() -> float:
    """Runnable threads besides ours, over the last minute."""
    return os.getloadavg()[0]


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""
