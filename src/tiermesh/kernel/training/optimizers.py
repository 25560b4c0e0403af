"""What changes the weights. A plugin's optimizer is made the same way as those that are built in."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

Groups = list[dict[str, Any]]
"""As torch's optimizers take them, each with its weight decay."""


def grouped(parameters: Iterable[nn.Parameter], weight_decay: float) -> Groups:
    """Matrices decay; norms and biases, which have one dimension, do not."""
    given = list(parameters)
    matrices = [one for one in given if one.dim() > 1]
    vectors = [one for one in given if one.dim() <= 1]
    groups: Groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(groups: Groups, learning_rate: float, **options: Any) -> torch.optim.Optimizer:
    """Loshchilov and Hutter 2019 (arXiv 1711.05101), one pass over memory for all of it."""
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True, **options)


def adamw8bit(groups: Groups, learning_rate: float, **options: Any) -> torch.optim.Optimizer:
    """The same with its state in 8 bits (Dettmers et al. 2022, arXiv 2110.02861): a quarter of the memory."""
    from bitsandbytes.optim import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(groups, lr=learning_rate, **options)
    return made


def sgd(groups: Groups, learning_rate: float, **options: Any) -> torch.optim.Optimizer:
    """Plain, unless the options give a momentum: next to no memory."""
    return torch.optim.SGD(groups, lr=learning_rate, **options)


def open_state(optimizer: torch.optim.Optimizer, *, thin: bool = False) -> bool:
    """Make what the optimizer would make at its first step for each weight that has nothing yet; all of them zeros.
    `thin`: such that they take no memory, to be moved to where they do. False: nothing of this optimizer is known, or
    not as thin as that; it makes its own when it likes."""
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
        _open_adam(optimizer, thin=thin)
        return True
    if not thin and "bitsandbytes" in sys.modules:
        from bitsandbytes.optim.optimizer import Optimizer8bit

        if isinstance(optimizer, Optimizer8bit):
            _open_8bit(optimizer)
            return True
    return False


def close_state(optimizer: torch.optim.Optimizer) -> None:
    """Forget it all, as before the first step."""
    optimizer.state.clear()


def _open_8bit(optimizer: Any) -> None:
    for number, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            if not optimizer.state[parameter]:
                optimizer.init_state(group, parameter, number, index)


def _open_adam(optimizer: torch.optim.Optimizer, *, thin: bool) -> None:
    for group in optimizer.param_groups:
        moments = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))
        for parameter in group["params"]:
            if optimizer.state[parameter]:
                continue
            beside = parameter.device if group["capturable"] or group["fused"] else None
            state = {"step": torch.zeros((), dtype=torch.float32, device=beside)}
            for name in moments:
                zero = parameter.new_zeros(())
                state[name] = zero.expand(parameter.shape) if thin else torch.zeros_like(parameter)
            optimizer.state[parameter] = state
