"""Training runs as real worker processes: made, started as the launcher starts them, killed, and read afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiermesh.protocol.run_folder import DONE, RunFolder, RunPlan
from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_events import StepDone, TrainingEvent, from_line

WORKER = (sys.executable, "-m", "tiermesh.kernel.training")
ALLOCATOR = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""As the launcher sets it."""
WORDS = "the quick brown fox jumps over the lazy dog and then it sleeps under a tree by the river"
LOOK_S = 0.005
LONGEST_RUN_S = 540.0


def plan_run(path: Path, model: Path, data: Path, **fields: Any) -> RunFolder:
    """A run's folder, ready to be started."""
    spec = TrainingSpec.model_validate(
        {"model_name": str(model), "dataset_path": str(data), "eval_fraction": 0.0, "log_interval": 1} | fields
    )
    folder = RunFolder(path)
    folder.write_plan(RunPlan(spec=spec, model_path=str(model), data_path=str(data)))
    return folder


@contextmanager
def worker(
    folder: RunFolder, *arguments: str, threads: int = 1, environment: Mapping[str, str] = ALLOCATOR
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in that folder; what still lives at the end is killed. Its log is the folder's."""
    command = [*WORKER, str(folder.path), "--threads", str(threads), *arguments]
    cache = {"TIERMESH_CACHE": str(folder.path.parent / "cache")}
    with folder.log.open("ab") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, **cache, **environment}
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        if child.stdin is not None:
            child.stdin.close()


def run_to_end(folder: RunFolder, *arguments: str, **settings: Any) -> None:
    """Start it and wait for its result."""
    with worker(folder, *arguments, **settings) as child:
        code = child.wait(LONGEST_RUN_S)
    if code != DONE:
        raise AssertionError(f"the worker ended with {code}:\n{folder.log.read_text()[-3000:]}")


def events(folder: RunFolder) -> list[TrainingEvent]:
    """All that it told, by all its processes."""
    if not folder.events.exists():
        return []
    lines = folder.events.read_bytes().splitlines()
    return [event for line in lines if (event := from_line(line)) is not None]


def steps_told(folder: RunFolder) -> int:
    """The last step that was done by any of its processes."""
    return max((event.step for event in events(folder) if isinstance(event, StepDone)), default=0)


def losses(folder: RunFolder) -> dict[int, set[float | None]]:
    """Of each step, every loss that was told for it: one, however often it was done again."""
    told: dict[int, set[float | None]] = {}
    for event in events(folder):
        if isinstance(event, StepDone):
            told.setdefault(event.step, set()).add(event.loss)
    return told


def weights_digest(folder: RunFolder) -> str:
    """SHA-256 of the result's tensors."""
    (file,) = sorted(folder.result.glob("*.safetensors"))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def wait_for(condition: Callable[[], bool], child: subprocess.Popen[bytes], limit_s: float = LONGEST_RUN_S) -> bool:
    """Wait until it holds; false when the child ended before."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if condition():
            return True
        if child.poll() is not None:
            return condition()
        time.sleep(LOOK_S)
    raise AssertionError("it took too long")


def write_texts(path: Path, records: int, words: int = 60) -> Path:
    """Records of different lengths, always the same."""
    vocabulary = WORDS.split()
    with path.open("w") as file:
        for index in range(records):
            length = 5 + (index * 37) % words
            text = " ".join(vocabulary[(index * 7 + word * word) % len(vocabulary)] for word in range(length))
            file.write(json.dumps({"text": text}) + "\n")
    return path
