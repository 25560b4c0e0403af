"""What a model consists of, as the training kernel sees it. A process of its own: torch is never imported here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tiermesh.adapters.data_inspector import LAST_WORDS, QUIET
from tiermesh.errors import EnvironmentUnfit, ModelUnusable

NO_MODEL = 3
"""Exit status for a folder that holds no language model."""


def inspect_layers(folder: Path, *, rank: int) -> dict[str, Any]:
    """The kernel's `LayerReport` of a model's folder. Raises `ModelUnusable`, or `EnvironmentUnfit` without torch."""
    done = subprocess.run(
        [sys.executable, "-m", "tiermesh.kernel.training.layers", str(folder), "--rank", str(rank)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, **QUIET},
        check=False,
    )
    said = done.stderr.strip().splitlines()
    if done.returncode == NO_MODEL and said:
        raise ModelUnusable(said[-1])
    try:
        told = json.loads(done.stdout)
    except ValueError:
        last = " ".join(done.stderr.split())[-LAST_WORDS:]
        raise EnvironmentUnfit(f"models can't be looked at here: {last}") from None
    assert isinstance(told, dict)
    return told
