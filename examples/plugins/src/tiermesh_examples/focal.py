"""A loss: called with the spec's options; gives a function from scores and labels to a number for each target token.

The function sees the target tokens alone (no padding, no prompt), some hundred at a time: logits of shape
(tokens, vocabulary) in fp32, labels of shape (tokens,). Weighting and averaging are done outside.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy


def focal(*, gamma: float = 2.0) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Lin et al. 2017 (arXiv 1708.02002): a token that the model gives the probability p counts (1 - p)^gamma."""

    def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        surprise = cross_entropy(logits, labels, reduction="none")
        doubt = 1 - torch.exp(-surprise)
        return doubt.pow(gamma) * surprise

    return losses
