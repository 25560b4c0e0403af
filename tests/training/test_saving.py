"""A kill while a checkpoint is being saved."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)

RUN = """
import json, sys
from dataclasses import asdict
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from benchmarks.training.saving import kill_while_saving
print(json.dumps(asdict(kill_while_saving(Path(sys.argv[2]), 30, seed=1))))
"""


def test_kills_while_saving_lose_nothing_that_was_saved(tmp_path: Path) -> None:
    """Thirty here, two hundred in scripts/bench_resume. In a process of its own, because it forks."""
    root = str(Path(__file__).parents[2])
    ran = subprocess.run([sys.executable, "-c", RUN, root, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["kills"] == 30
    assert (told["unusable"], told["wrong"], told["lost"], told["damaged"]) == (0, 0, 0, 0)
