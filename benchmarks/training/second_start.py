"""How long a run takes to its first step when its data was seen before.

What counts is all but the model: what the launcher finds out about the data, the worker's way from the loaded model to
its loop. Imports and loading the model are told besides.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.training import data
from benchmarks.training.docstrings import write
from benchmarks.training.workers import events, run_to_end
from tiermesh.adapters.run_plan import plan_of
from tiermesh.protocol.run_folder import RunFolder
from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_events import DataReady, Phase, StepDone


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds. `beyond_s`: from the loaded model to the loop, and the plan before; `whole_s`: from the worker's spawn
    until its first step is done."""

    beyond_s: float
    whole_s: float
    tokens: int


def measure(
    folder: Path, model: Path, environment: Mapping[str, str], *, threads: int, records: int
) -> tuple[Start, Start]:
    """The first start on made-up records, and the second, each of a whole run of one step."""
    path = write(folder / "data.jsonl", data.records(records))
    return tuple(_start(folder / name, model, path, environment, threads) for name in ("first", "second"))  # type: ignore[return-value]


def _start(path: Path, model: Path, dataset: Path, environment: Mapping[str, str], threads: int) -> Start:
    spec = TrainingSpec(
        model_name=str(model), dataset_path=str(dataset), max_steps=1, micro_batch_size=1, eval_fraction=0.0
    )
    began = time.perf_counter()
    folder = RunFolder(path)
    folder.write_plan(plan_of(spec))
    plan_s = time.perf_counter() - began
    spawned = time.time()
    run_to_end(folder, threads=threads, environment=environment)
    told = events(folder)
    loaded = next(one.at for one in told if isinstance(one, Phase) and (one.phase, one.state) == ("model", "completed"))
    begins = next(one.at for one in told if isinstance(one, Phase) and (one.phase, one.state) == ("train", "started"))
    done = next(one.at for one in told if isinstance(one, StepDone))
    tokens = next(one.tokens for one in told if isinstance(one, DataReady))
    return Start(plan_s + begins - loaded, plan_s + done - spawned, tokens)
