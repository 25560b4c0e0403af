"""Loss spikes told from noise: exponential averages and z-scores, after ZClip (Kumar et al. 2025, arXiv 2504.02507).

Theory of operation. Two series are watched, the loss and the logarithm of the gradient's norm, each with an exponential
mean and variance of the steps before. A value far above its mean makes the step suspect; its update is withheld, so
whatever the data did, the weights did not see it. When the next step is ordinary again the data was at fault. When it
is not, the weights are, and the run goes back to its last good state.

| judged | before it | meaning | what the run does |
|---|---|---|---|
| ordinary | anything | good | updates |
| far above | good | suspect | withholds the update, passes these examples over |
| far above | suspect | spike | goes back to the last good state, passes over the examples since the first suspect |

A suspect value enters the averages at the threshold, never as it is, and not before the next step is judged: it can't
hide that one, and a level that has truly changed is taken for normal after some steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum

PATIENCE = 2
"""Suspect steps in a row that make a spike: one is an outlier in the data, two are the weights."""


class Verdict(Enum):
    """What a step's figures say."""

    GOOD = "good"
    SUSPECT = "suspect"
    SPIKE = "spike"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """When a step is suspect.

    `z`: standard deviations above the mean; 6 lets the skewed noise of small batches pass, and a real spike is tens.
    `memory_steps`: about how many steps the averages look back. `warm_up_steps`: judged by nobody, since a loss falls
    steeply at first and a mean of few steps is none. `least_loss` and `least_log_norm`: rises smaller than these are
    never suspect, however quiet the series was (0.5 nats; a gradient four times as long).
    """

    z: float = 6.0
    memory_steps: int = 50
    warm_up_steps: int = 10
    least_loss: float = 0.5
    least_log_norm: float = math.log(4.0)


@dataclass(slots=True)
class Average:
    """Exponential mean and variance of a series, and how many values it has seen."""

    mean: float = 0.0
    variance: float = 0.0
    seen: int = 0

    def limit(self, z: float, least: float) -> float:
        """The highest value that is still ordinary."""
        return self.mean + max(z * math.sqrt(self.variance), least)

    def add(self, value: float, memory_steps: int) -> None:
        """Like a plain average until `memory_steps` values were seen, exponential from then on."""
        self.seen += 1
        share = 1.0 / min(self.seen, memory_steps)
        apart = value - self.mean
        self.mean += share * apart
        self.variance = (1.0 - share) * (self.variance + share * apart * apart)


@dataclass(slots=True)
class Detector:
    """Judges one step after another. Its whole state goes into a checkpoint and comes back."""

    sensitivity: Sensitivity = field(default_factory=Sensitivity)
    loss: Average = field(default_factory=Average)
    log_norm: Average = field(default_factory=Average)
    suspects: int = 0
    held: list[tuple[float, float]] = field(default_factory=list)
    """Figures of suspects, at the threshold, that the averages have not seen yet."""

    def judge(self, loss: float, grad_norm: float) -> Verdict:
        """Judge a step by its mean loss in nats and its gradient's norm before clipping; both must be finite."""
        log_norm = math.log(max(grad_norm, 1e-12))
        within = (
            min(loss, self._limit(self.loss, self.sensitivity.least_loss)),
            min(log_norm, self._limit(self.log_norm, self.sensitivity.least_log_norm)),
        )
        self.held.append(within)
        if within == (loss, log_norm):
            self.suspects = 0
        else:
            self.suspects += 1
            if self.suspects < PATIENCE:
                return Verdict.SUSPECT
        self._add_held()
        return Verdict.SPIKE if self.suspects else Verdict.GOOD

    def to_dict(self) -> dict[str, object]:
        """Plain numbers."""
        averages = {"loss": asdict(self.loss), "log_norm": asdict(self.log_norm)}
        return {**averages, "suspects": self.suspects, "held": [list(one) for one in self.held]}

    def take(self, state: Mapping[str, object]) -> None:
        """Become what `to_dict` told."""
        loss, log_norm, suspects = state["loss"], state["log_norm"], state["suspects"]
        assert isinstance(loss, Mapping)
        assert isinstance(log_norm, Mapping)
        assert isinstance(suspects, int)
        held = state.get("held", [])  # not in older checkpoints
        assert isinstance(held, list)
        self.loss, self.log_norm, self.suspects = Average(**loss), Average(**log_norm), suspects
        self.held = [(first, second) for first, second in held]

    def _limit(self, average: Average, least: float) -> float:
        judges = average.seen >= self.sensitivity.warm_up_steps
        return average.limit(self.sensitivity.z, least) if judges else math.inf

    def _add_held(self) -> None:
        for loss, log_norm in self.held:
            self.loss.add(loss, self.sensitivity.memory_steps)
            self.log_norm.add(log_norm, self.sensitivity.memory_steps)
        self.held = []
