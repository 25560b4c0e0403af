"""All documents of a data set as tokens, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.uint16] | NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Document d is `tokens[bounds[d] : bounds[d + 1]]`; `learned` is 1 where a token is a target.

    `weights` and `repeats` have an entry a document: how much its targets count, and how often it is seen an epoch.
    `hashes` are of records' contents: equal ones, up to white space, are one record for the held-out split.
    """

    tokens: Tokens
    learned: NDArray[np.uint8]
    bounds: NDArray[np.int64]
    weights: NDArray[np.float32]
    repeats: NDArray[np.float32]
    hashes: NDArray[np.void]
    digest: str

    @property
    def documents(self) -> int:
        return len(self.bounds) - 1
