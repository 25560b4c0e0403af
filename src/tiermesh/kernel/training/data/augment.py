"""What a model is shown instead of a row's own tokens; what it has to predict stays.

Every change depends on the row and the epoch alone, so that a run which goes on after a stop sees what it would have
seen. How often an example is repeated is decided before rows are made (`splitting.repeated`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
Change = Callable[[Tokens, Tokens, Sequence[int], int], Tokens]
"""(tokens_BT, positions_BT, rows, epoch) -> tokens_BT. Must depend on these alone, each row on its own."""


@dataclass(frozen=True, slots=True)
class TokenMasking:
    """Replaces a share of the tokens, against learning by heart. A document's first token is left, and `kept` ones.

    `mask` None: by any of `vocabulary` tokens, drawn evenly.
    """

    share: float
    seed: int
    vocabulary: int
    mask: int | None = None
    kept: frozenset[int] = frozenset()

    def __call__(self, tokens_BT: Tokens, positions_BT: Tokens, rows: Sequence[int], epoch: int) -> Tokens:
        changed_BT = tokens_BT.copy()
        kept = np.fromiter(self.kept, dtype=np.int64)
        for at, row in enumerate(rows):
            # The generator's stream is part of what resumes exactly: Philox by key, the same on every machine.
            random = np.random.Generator(np.random.Philox(key=[self.seed % 2**64, (epoch << 40) ^ row]))
            chance = random.random(tokens_BT.shape[1])
            drawn = random.integers(self.vocabulary, size=tokens_BT.shape[1])
            instead = drawn if self.mask is None else np.full_like(drawn, self.mask)
            replaced = (chance < self.share) & (positions_BT[at] > 0) & ~np.isin(tokens_BT[at], kept)
            changed_BT[at] = np.where(replaced, instead, tokens_BT[at])
        return changed_BT
