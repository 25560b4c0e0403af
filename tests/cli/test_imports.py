"""The command line starts lean and quickly."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "transformers", "aiohttp", "zeroconf", "peft", "pydantic", "yaml", "rich")

HELP_LIMIT_S = 2.0
"""Five times what is promised, so that a busy machine does not fail the suite; the figure itself is printed."""


def test_the_command_line_loads_nothing_heavy() -> None:
    script = f"import sys, tiermesh.cli.main; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def test_help_comes_at_once() -> None:
    command = [sys.executable, "-m", "tiermesh.cli.main", "--help"]
    times = []
    for _ in range(5):
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        times.append(time.monotonic() - started)
    assert "Usage: mesh" in done.stdout
    print(f"\nmesh --help: median {sorted(times)[2]:.3f} s, best {min(times):.3f} s")
    assert min(times) < HELP_LIMIT_S


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    env = {**os.environ, "_MESH_COMPLETE": f"source_{shell}"}
    command = [sys.executable, "-m", "tiermesh.cli.main"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=env)
    assert "_MESH_COMPLETE" in done.stdout
