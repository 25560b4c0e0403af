"""The worker, with its data, its learning rate or its weights spoiled at given steps, once each.

python -m benchmarks.training.spoiled INJECTIONS RUN_FOLDER --threads N
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import torch

from benchmarks.training.spikes import Injection
from tiermesh.kernel.training import __main__ as worker
from tiermesh.kernel.training import assembly
from tiermesh.kernel.training.run import Run

RATE = 1000.0
FACTOR = 1.5
"""Of all weights in training; an adapter's output grows by its square."""


class Noise:
    """A source whose tokens are noise at the steps where that is wanted."""

    def __init__(self, source: Any, run: Run, due: Any) -> None:
        self._source, self._run, self._due = source, run, due
        self._noisy: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def micro(self, rows: Any, *, epoch: int = 0) -> Any:
        """Every target of such a step is any word."""
        batch = self._source.micro(rows, epoch=epoch)
        step = self._run.progress.step
        if self._due("data", step):
            self._noisy = step
        if self._noisy != step:
            return batch
        vocabulary = self._run.trainee.causal.config.vocab_size
        noise_BT = torch.randint(3, vocabulary, batch.labels_BT.shape)
        return replace(batch, labels_BT=torch.where(batch.labels_BT < 0, batch.labels_BT, noise_BT))


def spoil(run: Run, injections: list[Injection]) -> None:
    """Let them come to pass."""
    left = list(injections)

    def due(kind: str, step: int) -> bool:
        found = next((one for one in left if one.kind == kind and one.step == step), None)
        if found is not None:
            left.remove(found)
        return found is not None

    schedule, wait = run.schedule, run.wait_while_paused

    def steep(step: int) -> float:
        return schedule(step) * (RATE if due("rate", step) else 1.0)

    def between(step: int) -> None:
        wait(step)
        if due("weights", step - 1):
            with torch.no_grad():
                for one in run.trainee.trainables.values():
                    one.mul_(FACTOR)

    run.schedule, run.wait_while_paused = steep, between
    run.source = Noise(run.source, run, due)


def main() -> None:
    """Become the worker."""
    injections = [Injection(**one) for one in json.loads(sys.argv.pop(1))]
    ready = assembly.ready

    def spoiled(*given: Any, **named: Any) -> Run:
        run = ready(*given, **named)
        spoil(run, injections)
        return run

    assembly.ready = spoiled
    worker.main()


if __name__ == "__main__":
    main()
