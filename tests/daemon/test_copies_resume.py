"""A real run whose machine dies goes on from its copied checkpoint on another one, as if nothing had happened."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
from pathlib import Path

import pytest
from tests.daemon.copying_mesh import CopyingNode, copying_mesh, new_job

pytest.importorskip("torch")
from benchmarks.training.workers import (
    events,
    losses,
    plan_run,
    run_to_end,
    steps_told,
    weights_digest,
    worker,
    write_texts,
)
from tests import tiny_model

from tiermesh.adapters.run_events import EventTail
from tiermesh.core.attempts import Checkpoint
from tiermesh.protocol.run_folder import RunFolder
from tiermesh.protocol.training_events import CheckpointSaved, Resumed, StepDone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

LIMIT_S = 400.0
NAMES = ("one", "two", "three", "four")
INTERVAL = 4
FIELDS = {
    "seq_len": 64,
    "micro_batch_size": 2,
    "max_steps": 40,
    "save_interval": INTERVAL,
    "learning_rate": 1e-2,
    "precision": "bf16",
    "lora": {"r": 4, "dropout": 0.1},
    "guard": {"spike_z": None},
}


@pytest.mark.long
async def test_the_curve_goes_on_exactly_as_an_undisturbed_runs(tmp_path: Path) -> None:
    model = tiny_model.build_folder(tmp_path / "model")
    data = write_texts(tmp_path / "data.jsonl", 300)
    undisturbed = plan_run(tmp_path / "undisturbed", model, data, **FIELDS)
    await asyncio.to_thread(run_to_end, undisturbed)
    chance, job = random.Random(6), new_job()
    async with copying_mesh(tmp_path / "mesh", *NAMES) as mesh, asyncio.timeout(LIMIT_S):
        alive, node = [*NAMES], mesh[NAMES[0]]
        run = plan_run(tmp_path / "attempt-1", model, data, **FIELDS)
        for attempt, kill_at in enumerate((chance.randrange(6, 18), chance.randrange(22, 34)), start=1):
            checkpoint = await die_at(node, job, attempt, run, kill_at)
            reached = steps_told(run)
            assert reached - checkpoint.step <= INTERVAL + 1, "at most an interval is done again"
            mesh.mark(node.name, "down")
            assert node.runner is not None
            await node.runner.cleanup()
            alive.remove(node.name)
            node = next(mesh[name] for name in alive if mesh[name].id not in checkpoint.holders)
            run = plan_run(tmp_path / f"attempt-{attempt + 1}", model, data, **FIELDS)
            await node.copies.prepare(job, attempt + 1, run, checkpoint)
        await asyncio.to_thread(run_to_end, run)
    assert losses(run) == losses(undisturbed)
    steps = [event.step for event in events(run) if isinstance(event, StepDone)]
    assert steps == list(range(1, 41)), "nothing twice: one curve"
    assert [event.differences for event in events(run) if isinstance(event, Resumed)] == [[], []]
    assert weights_digest(run) == weights_digest(undisturbed)


async def die_at(node: CopyingNode, job: str, attempt: int, run: RunFolder, step: int) -> Checkpoint:
    """Train on `node`, copying all the while, until the worker is killed. Gives the newest that others have."""
    tail = EventTail(run.events, from_start=not run.events.exists())
    with worker(run) as child:
        while steps_told(run) < step:
            assert child.poll() is None, run.log.read_text()
            for event in tail.read():
                if isinstance(event, CheckpointSaved):
                    node.copies.checkpoint_saved(job, attempt, event.name, run, replicas=1, open_data=False)
            await asyncio.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        await asyncio.to_thread(subprocess.Popen.wait, child)
    for event in tail.read():
        if isinstance(event, CheckpointSaved):
            node.copies.checkpoint_saved(job, attempt, event.name, run, replicas=1, open_data=False)
    await node.copies.settled(job)
    held = [checkpoint for _, number, checkpoint in node.told if number == attempt and len(checkpoint.holders) > 1]
    return max(held, key=lambda checkpoint: checkpoint.step)
