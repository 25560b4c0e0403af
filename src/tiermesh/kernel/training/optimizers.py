"""What changes the weights. A plugin's optimizer is made the same way as those that are built in."""

from __future__ import annotations

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
