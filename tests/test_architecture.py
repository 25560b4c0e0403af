"""What a room may load: the daemon never holds torch, the command line starts lean."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "accelerate")


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("tiermesh", (*HEAVY, "aiohttp", "zeroconf", "pydantic")),
        ("tiermesh.cli.main", (*HEAVY, "aiohttp", "zeroconf")),
        ("tiermesh.daemon.app", HEAVY),
        ("tiermesh.client", (*HEAVY, "zeroconf")),
    ],
)
def test_import_stays_lean(module: str, forbidden: tuple[str, ...]) -> None:
    script = f"import sys, {module}; print(*sorted(set({forbidden!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
