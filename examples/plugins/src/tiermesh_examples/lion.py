"""An optimizer: called with parameter groups, the learning rate, and the spec's options; gives torch's `Optimizer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def lion(
    groups: list[dict[str, Any]], learning_rate: float, *, betas: Sequence[float] = (0.9, 0.99)
) -> torch.optim.Optimizer:
    """The groups are to be passed on as they are: each has its `params` and its `weight_decay`."""
    first, second = betas
    return Lion(groups, learning_rate, first, second)


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023 (arXiv 2302.06675). Its state must lie in `self.state`, so that checkpoints have it."""

    def __init__(self, groups: list[dict[str, Any]], learning_rate: float, first: float, second: float) -> None:
        super().__init__(groups, {"lr": learning_rate, "first": first, "second": second, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Every step is as long as the rate says, whatever the gradient's length."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                direction = momentum.lerp(weight.grad, 1 - group["first"]).sign_()
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
                momentum.lerp_(weight.grad, 1 - group["second"])
        return loss
