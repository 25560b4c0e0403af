"""From logits to the next token. A choice depends on the logits, the seed and the position, and on nothing else.

Legend: V vocabulary, K the tokens that top_p keeps.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from tiermesh.kernel.inference.sequence import Sampling

UNIFORM_BITS = 53
"""What a float64 between 0 and 1 can hold exactly."""


@dataclass(frozen=True, slots=True)
class NotFinite(Exception):
    """The model computed no usable probabilities."""

    position: int

    def __str__(self) -> str:
        return f"the model's output at position {self.position} is not a number"


def sample(logits_V: torch.Tensor, sampling: Sampling, position: int) -> int:
    """The token at `position`, counted from the start of the prompt. Temperature 0 is greedy, the lowest id wins ties.

    Because the random number comes from (seed, position), a sequence that is resumed elsewhere from its tokens goes on
    as it would have.
    """
    if not torch.isfinite(logits_V).all():
        raise NotFinite(position)
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    scaled_V = (logits_V.double() - logits_V.max().double()) / sampling.temperature
    probabilities_V = torch.softmax(scaled_V, dim=-1)
    u = uniform(sampling.seed, position)
    if sampling.top_p == 1:
        return _pick(probabilities_V, u)
    sorted_V, order_V = probabilities_V.sort(descending=True, stable=True)
    # A token is kept while those before it hold less than top_p together: at least one always is.
    kept_K = sorted_V[: max(1, int((sorted_V.cumsum(0) - sorted_V < sampling.top_p).sum()))]
    return int(order_V[_pick(kept_K, u)])


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that is the same on every machine and in every version of every library."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> (64 - UNIFORM_BITS)) / (1 << UNIFORM_BITS)


def _pick(weights_K: torch.Tensor, u: float) -> int:
    """Invert the cumulative distribution of unnormalised weights at `u`."""
    cumulative_K = weights_K.cumsum(0)
    target = cumulative_K[-1] * u
    return min(int(torch.searchsorted(cumulative_K, target, right=True)), len(weights_K) - 1)
