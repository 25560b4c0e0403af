"""An adapter put into its base model, by the kernel as a process: torch is never imported here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tiermesh.adapters.data_inspector import LAST_WORDS, QUIET
from tiermesh.errors import EnvironmentUnfit, ModelUnusable

UNFIT = 3
"""As the kernel's program exits for what can't be merged."""


def merge(base: Path, adapter: Path, target: Path) -> None:
    """Write the merged model as the folder `target`, which must not be there; blocks.

    Raises `ModelUnusable`, or `EnvironmentUnfit` where the libraries are missing.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tiermesh.kernel.training.merging", str(base), str(adapter), str(target)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, **QUIET},
        check=False,
    )
    if done.returncode == 0:
        return
    said = done.stderr.strip().splitlines()
    if done.returncode == UNFIT and said:
        raise ModelUnusable(said[-1])
    raise EnvironmentUnfit(f"models can't be merged here: {' '.join(done.stderr.split())[-LAST_WORDS:]}")
