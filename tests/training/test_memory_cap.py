"""Under a limit below its plain need a run takes relief and ends as it would have without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.training.workers import WORKER, events, plan_run, write_texts
from tests.tiny_model import build_folder

from tiermesh.protocol.run_folder import DONE, FAILED, RunFolder
from tiermesh.protocol.training_events import Failed, Planned, Relieved, StepDone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts data as its limit does"),
]

STEPS = 6
FIELDS: dict[str, Any] = {
    "seq_len": 512,
    "micro_batch_size": 48,
    "max_steps": STEPS,
    "num_epochs": 100,
    "save_interval": 100,
    "precision": "fp32",
    "learning_rate": 1e-2,
    "lora": {"dropout": 0.0},
    "guard": {"spike_z": None},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("data") / "data.jsonl", 3000)


MEASURED = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(child.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024)
"""
"""A small process between: what the system counts for a child begins with what its parent had when it was born."""


def run(folder: RunFolder, *arguments: str) -> tuple[int, int]:
    """Exit status and the most that was resident; the system holds it at its limit, nobody else."""
    worker = [*WORKER, str(folder.path), "--threads", "1", *arguments]
    with folder.log.open("ab") as log:
        command = [sys.executable, "-c", MEASURED, *worker]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as child:
            assert child.stdout is not None
            code, used = child.stdout.read().split()
    return int(code), int(used)


def last_loss(folder: RunFolder) -> float:
    steps = {event.step: event.loss for event in events(folder) if isinstance(event, StepDone)}
    assert len(steps) == STEPS
    loss = steps[STEPS]
    assert loss is not None
    return loss


def test_it_finishes_with_the_same_effective_batch_and_loss(tmp_path: Path, model: Path, data: Path) -> None:
    plain = plan_run(tmp_path / "plain", model, data, **FIELDS)
    code, need = run(plain)
    assert code == DONE, plain.log.read_text()
    least = plan_run(tmp_path / "least", model, data, **FIELDS | {"micro_batch_size": 1, "max_steps": 1})
    code, least_need = run(least)
    assert code == DONE, least.log.read_text()

    capped = plan_run(tmp_path / "capped", model, data, **FIELDS)
    limit = least_need + (need - least_need) // 3
    code, used = run(capped, "--memory-limit", str(limit))
    assert code == DONE, capped.log.read_text()
    assert used < limit * 1.02
    relieved = [event for event in events(capped) if isinstance(event, Relieved)]
    assert relieved
    # Refused by the system in the midst of a step: nobody had looked at how much there was.
    assert relieved[0].pressure is None
    assert relieved[-1].micro_batch_size < 48
    (planned,) = [event for event in events(capped) if isinstance(event, Planned)]
    assert planned.effective_batch == 48
    assert last_loss(capped) == pytest.approx(last_loss(plain), abs=1e-3)


def test_when_nothing_is_left_to_relieve_it_fails_typed(tmp_path: Path, model: Path, data: Path) -> None:
    fields = FIELDS | {
        "micro_batch_size": 1,
        "seq_len": 4096,
        "checkpointing": False,
        "lora": {"dropout": 0.0, "r": 512},
    }
    plain = plan_run(tmp_path / "plain", model, data, **fields | {"max_steps": 1})
    code, need = run(plain)
    assert code == DONE, plain.log.read_text()
    tight = plan_run(tmp_path / "tight", model, data, **fields)
    code, _ = run(tight, "--memory-limit", str(need - (60 << 20)))
    assert code == FAILED, tight.log.read_text()
    last = events(tight)[-1]
    assert isinstance(last, Failed)
    assert last.kind == "out_of_memory"
    assert "seq_len" in last.advice
    assert last.crash is not None
    names = {path.name for path in (tight.crash / last.crash).iterdir()}
    assert {"report.json", "stack.txt", "events.jsonl", "worker.log", "spec.json"} <= names
