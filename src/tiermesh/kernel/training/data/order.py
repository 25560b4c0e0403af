"""In which order rows are seen: a position is one integer, and says which row without any state.

Position p is place `p % rows` of epoch `p // rows`. Each epoch is a permutation of its own, keyed by seed and epoch:
a Feistel network over the next power of four, walked until it is back inside (Black and Rogaway, "Ciphers with
arbitrary finite domains", 2002). Nothing is stored, so going on after a stop needs the position alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6
"""Four make a permutation look random to whoever asks it; two more for domains of a few rows."""

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""Of splitmix64's finalizer (Steele, Lea and Flood, 2014)."""


@dataclass(frozen=True, slots=True)
class Order:
    """The order of `rows` rows under a seed. One shard of `world` has every position that is `rank` modulo `world`."""

    seed: int
    rows: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        assert self.rows > 0
        assert 0 <= self.rank < self.world

    def sharded(self, rank: int, world: int) -> Order:
        """This rank's part: asked for the same positions, the shards of a world give each row of them once."""
        return replace(self, rank=rank, world=world)

    def rows_at(self, start: int, count: int) -> list[int]:
        """The rows at positions `start` to `start + count`, which may span epochs; of a shard, those that are its."""
        positions = np.arange(start, start + count, dtype=np.int64)
        positions = positions[positions % self.world == self.rank]
        epochs, places = np.divmod(positions, self.rows)
        found = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = permuted(places[here], self.rows, self.seed, int(epoch))
        return [int(row) for row in found]

    def epoch_at(self, position: int) -> int:
        """The epoch that a position is in, from 0."""
        return position // self.rows


def permuted(places: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where a permutation of `range(size)`, keyed by seed and epoch, takes these places."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = _keys(seed, epoch)
    values = _feistel(places.astype(np.uint64), half, keys)
    while (outside := values >= size).any():
        values[outside] = _feistel(values[outside], half, keys)
    return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << half) | right


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))


def _keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    digest = hashlib.blake2b(f"{seed}:{epoch}".encode(), digest_size=8 * ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8")
