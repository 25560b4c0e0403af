"""Runs on models that are made in no time, with examples that a test can spoil."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tests.tiny_model import VOCABULARY

from tiermesh.core.spikes import Detector, Sensitivity
from tiermesh.kernel.training import models
from tiermesh.kernel.training.checkpoints import Checkpoints
from tiermesh.kernel.training.data.batches import MicroBatch, PairBatch
from tiermesh.kernel.training.data.order import Order
from tiermesh.kernel.training.loss import NO_LABEL, TokenLoss
from tiermesh.kernel.training.memory import Usage
from tiermesh.kernel.training.optimizers import adamw, grouped
from tiermesh.kernel.training.run import Run
from tiermesh.kernel.training.schedules import constant
from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_events import TrainingEvent

ROWS, WIDTH = 24, 20


class Rows:
    """Rows of random tokens of which the first few are a prompt; each repeats a pattern, so that it can be learned."""

    digest = "rows"

    def __init__(self, rows: int = ROWS, width: int = WIDTH, *, weighted: bool = False, seed: int = 0) -> None:
        chance = torch.Generator().manual_seed(seed)
        pattern = torch.randint(3, VOCABULARY, (rows, 4), generator=chance)
        self.tokens_RT = pattern.repeat(1, width // 4)
        self.labels_RT = self.tokens_RT.roll(-1, dims=1)
        self.labels_RT[:, -1] = NO_LABEL
        for row in range(rows):
            self.labels_RT[row, : row % 7] = NO_LABEL  # so that rows differ in their targets
        self.weights_RT = 0.5 + torch.rand(rows, width, generator=chance) if weighted else None
        self.asked: list[list[int]] = []
        """Rows of each micro-batch that was made."""

    @property
    def rows(self) -> int:
        return len(self.tokens_RT)

    def targets(self, rows: Sequence[int]) -> float:
        wanted = self.labels_RT[list(rows)] != NO_LABEL
        return float(wanted.sum() if self.weights_RT is None else self.weights_RT[list(rows)][wanted].sum())

    def tokens(self, rows: Sequence[int]) -> int:
        return self.tokens_RT[list(rows)].numel()

    def micro(self, rows: Sequence[int], *, epoch: int = 0) -> MicroBatch:
        self.asked.append(list(rows))
        chosen = list(rows)
        positions_BT = torch.arange(self.tokens_RT.shape[1]).expand(len(chosen), -1)
        weights_BT = None if self.weights_RT is None else self.weights_RT[chosen]
        return MicroBatch(
            self.tokens_RT[chosen], positions_BT, self.labels_RT[chosen], weights_BT, self.targets(chosen)
        )


class Pairs:
    """Pairs of rows of two sources."""

    digest = "pairs"

    def __init__(self, rows: int = 8, width: int = WIDTH) -> None:
        self.chosen, self.rejected = Rows(rows, width, seed=1), Rows(rows, width, seed=2)
        self.rows = rows
        for source in (self.chosen, self.rejected):
            source.tokens_RT[:, :5] = self.chosen.tokens_RT[:, :5]
            source.labels_RT[:] = source.tokens_RT.roll(-1, dims=1)
            source.labels_RT[:, :4] = NO_LABEL
            source.labels_RT[:, -1] = NO_LABEL

    def targets(self, rows: Sequence[int]) -> float:
        return float(len(rows))

    def tokens(self, rows: Sequence[int]) -> int:
        return self.chosen.tokens(rows) + self.rejected.tokens(rows)

    def micro(self, rows: Sequence[int], *, epoch: int = 0) -> PairBatch:
        return PairBatch(self.chosen.micro(rows), self.rejected.micro(rows))


class Spoiled:
    """A `TokenLoss` that a test makes worse at the micro-batches it chooses."""

    def __init__(self, spoil: Callable[[int, torch.Tensor], torch.Tensor]) -> None:
        self._spoil = spoil
        self.calls = 0

    def summed(self, trainee: models.Trainee, batch: MicroBatch) -> torch.Tensor:
        self.calls += 1
        return self._spoil(self.calls, TokenLoss().summed(trainee, batch))


def spec_of(**fields: Any) -> TrainingSpec:
    defaults: dict[str, Any] = {
        "model_name": "tiny",
        "dataset_path": "data.jsonl",
        "precision": "fp32",
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 2e-3,
        "lora": {"dropout": 0.0},
        "save_interval": 1000,
    }
    return TrainingSpec.model_validate(defaults | fields)


def run_of(
    folder: Path, model: Path, spec: TrainingSpec, *, steps: int, **given: Any
) -> tuple[Run, list[TrainingEvent]]:
    """A run that keeps its checkpoints in `folder`, and the list where its events will be."""
    events: list[TrainingEvent] = []
    trainee = given.pop("trainee", None) or models.load(spec, model)
    source = given.pop("source", None) or Rows()
    z = spec.guard.spike_z
    settings: dict[str, Any] = {
        "tokenizer": models.load_tokenizer(model),
        "objective": TokenLoss(),
        "held_out": None,
        "optimizer": adamw(grouped(trainee.trainables.values(), spec.weight_decay), spec.learning_rate),
        "schedule": constant(steps, 0),
        "checkpoints": Checkpoints(folder / "checkpoints"),
        "conditions": {},
        "stopping": lambda: False,
        "look": lambda: Usage(1 << 30, 100 << 30, 0.01),
        "trim": lambda: None,
        "detector": None if z is None else Detector(Sensitivity(z=z)),
    }
    run = Run(
        spec=spec,
        trainee=trainee,
        source=source,
        order=Order(spec.seed, source.rows),
        steps=steps,
        say=events.append,
        **settings | given,
    )
    return run, events


def digest_of(run: Run) -> str:
    """SHA-256 of all weights in training and the optimizer's state."""
    total = hashlib.sha256()
    for name, tensor in run.trainee.trainables.items():
        total.update(name.encode() + tensor.detach().numpy().tobytes())
    for state in run.optimizer.state.values():
        for name, value in state.items():
            total.update(
                name.encode() + (value.numpy().tobytes() if isinstance(value, torch.Tensor) else b"%r" % value)
            )
    return total.hexdigest()


def weights_of(run: Run) -> Mapping[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in run.trainee.trainables.items()}
