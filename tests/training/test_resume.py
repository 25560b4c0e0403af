"""A run that was killed and taken up again is the run that nobody disturbed, to the last bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks.training.resume import disturbed
from benchmarks.training.workers import (
    events,
    losses,
    plan_run,
    run_to_end,
    steps_told,
    wait_for,
    weights_digest,
    worker,
    write_texts,
)
from tests.tiny_model import Kind, build_folder

from tiermesh.protocol.run_folder import STOPPED, RunFolder
from tiermesh.protocol.training_events import CheckpointSaved, Resumed, Stopped

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FIELDS = {
    "seq_len": 64,
    "micro_batch_size": 2,
    "max_steps": 40,
    "save_interval": 3,
    "learning_rate": 1e-2,
    "precision": "bf16",  # each run would measure what is faster for itself, and two may come to different ends
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("data") / "data.jsonl", 300)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_folder(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("method", "kind"), [("lora", "llama"), pytest.param("full_finetune", "gpt2", marks=pytest.mark.long)]
)
def test_killed_at_random_instants_it_ends_the_same(tmp_path: Path, data: Path, method: str, kind: Kind) -> None:
    """Dropout is on. Thrice here, twenty times in scripts/bench_resume."""
    folder = build_folder(tmp_path / "model", kind)
    fields = FIELDS | {"max_steps": 100}
    outcome = disturbed(tmp_path, folder, data, kills=3, seed=1, threads=1, method=method, **fields)
    assert outcome.kills == 3
    assert outcome.exact, outcome


def begun(folder: RunFolder, child: subprocess.Popen[bytes]) -> None:
    assert wait_for(lambda: steps_told(folder) >= 4, child)


@pytest.mark.parametrize("how", ["SIGTERM", "end of standard input"])
def test_one_that_is_told_to_stop_saves_and_goes_on(tmp_path: Path, model: Path, data: Path, how: str) -> None:
    fields = FIELDS | {"max_steps": 400, "save_interval": 1000}
    folder = plan_run(tmp_path / "run", model, data, **fields)
    with worker(folder) as child:
        begun(folder, child)
        began = time.monotonic()
        if how == "SIGTERM":
            child.send_signal(signal.SIGTERM)
        else:
            assert child.stdin is not None
            child.stdin.close()
        assert child.wait(20) == STOPPED
        assert time.monotonic() - began < 15.0
    last = events(folder)[-1]
    assert isinstance(last, Stopped)
    # Nothing of what was done is lost, and what was begun is done anew.
    assert last.step == steps_told(folder)
    assert any(isinstance(event, CheckpointSaved) and event.step == last.step for event in events(folder))
    with worker(folder) as child:
        assert wait_for(lambda: steps_told(folder) > last.step, child)
    taken_up = [event for event in events(folder) if isinstance(event, Resumed)]
    assert [(event.step, event.differences) for event in taken_up] == [(last.step, [])]
    assert all(len(told) == 1 for told in losses(folder).values())


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from benchmarks.training.workers import worker
from tiermesh.protocol.run_folder import RunFolder
with worker(RunFolder(Path(sys.argv[2]))) as child:
    print(child.pid, flush=True)
    child.wait()
"""


def test_a_parent_that_is_killed_leaves_a_checkpoint_and_no_orphan(tmp_path: Path, model: Path, data: Path) -> None:
    folder = plan_run(tmp_path / "run", model, data, **FIELDS | {"max_steps": 400, "save_interval": 1000})
    command = [sys.executable, "-c", PARENT, str(Path(__file__).parents[2]), str(folder.path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert wait_for(lambda: steps_told(folder) >= 4, parent)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5.0
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(pid)
    last = events(folder)[-1]
    assert isinstance(last, Stopped)
    assert (folder.checkpoints / f"step-{last.step:08d}").is_dir()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_a_checkpoint_that_rots_costs_one_interval_and_is_told(tmp_path: Path, model: Path, data: Path) -> None:
    calm = plan_run(tmp_path / "calm", model, data, **FIELDS | {"max_steps": 9})
    run_to_end(calm)
    folder = plan_run(tmp_path / "run", model, data, **FIELDS | {"max_steps": 9})
    with worker(folder) as child:
        assert wait_for((folder.checkpoints / "step-00000006").exists, child)
        child.kill()
    newest = max(path for path in folder.checkpoints.iterdir() if path.name.startswith("step-"))
    tensors = newest / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    run_to_end(folder)
    told = folder.events.read_text()
    assert f"damaged-{newest.name}" in told
    assert weights_digest(folder) == weights_digest(calm)
    assert losses(folder) == losses(calm)
