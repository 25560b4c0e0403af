"""Kills aimed at the saving of a checkpoint: at any instant of it, the newest good one is found again.

A process saves one state after another and says when each begins and ends. It is killed (SIGKILL) a random part of a
save's usual time after one began; then what it left is looked at as a fresh process would. Children are forked, because
importing torch two hundred times is what would take the time.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tiermesh.errors import CheckpointUnusable
from tiermesh.kernel.training.checkpoints import Checkpoints, Snapshot

ELEMENTS = 200_000
"""A save takes some milliseconds, most of them in the system's hands."""


@dataclass(slots=True)
class Tally:
    """What the kills did. `lost` counts, for each kill, the saves that had ended and are not there any more."""

    kills: int = 0
    unusable: int = 0
    lost: int = 0
    wrong: int = 0
    damaged: int = 0
    began: list[int] = field(default_factory=list)
    """How many saves ended before each kill."""


def state(step: int) -> Snapshot:
    """Different at each step, and known from it."""
    numbers = torch.full((ELEMENTS,), float(step))
    return Snapshot(step=step, position=step, tensors={"numbers": numbers}, facts={"step": step}, loss=float(step % 7))


def kill_while_saving(folder: Path, kills: int, seed: int) -> Tally:
    """Kill as often as that, each time going on from what is left."""
    torch.set_num_threads(1)  # a forked child has none of its parent's threads, and would wait for them for ever
    chance, tally = random.Random(seed), Tally()
    usual_s = _usual_s(folder / "warm")
    last_ended = 0
    while tally.kills < kills:
        ended = _one_kill(folder, last_ended, chance.random() * usual_s * 1.1, chance.randint(1, 4))
        tally.kills += 1
        tally.began.append(ended - last_ended)
        found = _found(folder, tally)
        if found is None:
            continue
        tally.lost += found < ended
        last_ended = found
    return tally


def _found(folder: Path, tally: Tally) -> int | None:
    """The step of the newest one, as a fresh process sees it."""
    checkpoints = Checkpoints(folder)
    try:
        newest = checkpoints.newest()
    except CheckpointUnusable:
        tally.unusable += 1
        return None
    tally.damaged += len(checkpoints.damaged)
    if newest is None:
        return 0
    expected = state(newest.step)
    if newest.facts != expected.facts or not torch.equal(newest.tensors["numbers"], expected.tensors["numbers"]):
        tally.wrong += 1
    return newest.step


def _one_kill(folder: Path, last: int, after_s: float, at_save: int) -> int:
    """Let a process save steps `last` + 1 and on; kill it `after_s` into its `at_save`-th save. Gives the last step
    that it had told as saved."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _save_for_ever(folder, last, writing)
    os.close(writing)
    for _ in range(at_save * 2 - 1):
        os.read(reading, 1)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    rest = len(b"".join(iter(lambda: os.read(reading, 64), b"")))
    os.close(reading)
    told = at_save * 2 - 1 + rest
    return last + told // 2


def _save_for_ever(folder: Path, last: int, pipe: int) -> None:
    """In the child. One byte when a save begins, one when it has ended."""
    checkpoints, step = Checkpoints(folder), last
    while True:
        step += 1
        snapshot = state(step)
        os.write(pipe, b"b")
        checkpoints.save(snapshot)
        os.write(pipe, b"e")


def _usual_s(folder: Path) -> float:
    checkpoints, times = Checkpoints(folder), []
    for step in range(1, 8):
        snapshot = state(step)
        began = time.perf_counter()
        checkpoints.save(snapshot)
        times.append(time.perf_counter() - began)
    return statistics.median(times)
