"""A text on its way to its vector: computed like a prompt, in pieces, so that nobody's stream waits for all of it.

Legend: T packed tokens, E width of the model.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from tiermesh.kernel.inference.attention import PackedBatch, Span
from tiermesh.kernel.inference.cache import Cache
from tiermesh.kernel.inference.loading import LoadedModel
from tiermesh.kernel.inference.slots import Slot

SMALLEST_NORM = 1e-12
"""A vector of zeros stays one."""


@dataclass(slots=True, eq=False)
class Embedding:
    """Used on the generator's thread, but for its future, which anybody may cancel."""

    tokens: list[int]
    vector: Future[list[float]] = field(default_factory=Future)
    """The mean of the base model's last states over all tokens, scaled to length 1."""
    slot: Slot | None = None
    _done: int = 0
    _sum_E: torch.Tensor | None = None

    def advance(self, model: LoadedModel, cache: Cache, budget: int) -> bool:
        """Compute the next `budget` tokens in its slot; gives whether that was all, and then the vector is told."""
        assert self.slot is not None, "the generator gives it one"
        piece = self.tokens[self._done : self._done + budget]
        batch = PackedBatch([Span(self.slot.index, self._done, piece)], cache, model.device)
        sum_E = model.states(batch).float().sum(0)
        self._sum_E = sum_E if self._sum_E is None else self._sum_E + sum_E
        self._done += len(piece)
        if self._done < len(self.tokens):
            return False
        mean_E = self._sum_E / len(self.tokens)
        self.vector.set_result((mean_E / mean_E.norm().clamp_min(SMALLEST_NORM)).tolist())
        return True
