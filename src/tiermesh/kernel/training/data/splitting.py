"""Which records are held out, and how often each of the others is seen: pure, by the hashes of their contents."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


def held_out(hashes: Hashes, fraction: float, seed: int) -> NDArray[np.bool_]:
    """True for about this share of different records, the same ones each time; equal records are on one side.

    At least one is held out and one is not, where a fraction is asked for and there are two different ones.
    """
    different = np.unique(hashes)
    if fraction <= 0 or len(different) < 2:
        return np.zeros(len(hashes), dtype=np.bool_)
    count = min(len(different) - 1, max(1, math.floor(fraction * len(different) + 0.5)))
    keyed = different[np.argsort(_mixed(different, seed), kind="stable")]
    return np.isin(hashes, keyed[:count])


def repeated(records: NDArray[np.int64], repeats: NDArray[np.float32], hashes: Hashes, seed: int) -> NDArray[np.int64]:
    """Each record as often as it is to be seen in an epoch. 2.5 is twice, and a third time for half of such records."""
    whole = np.floor(repeats).astype(np.int64)
    rest = repeats - whole
    chance = _mixed(hashes ^ np.uint64(0x9E3779B97F4A7C15), seed).astype(np.float64) / 2.0**64
    return np.repeat(records, whole + (chance < rest))


def _mixed(values: Hashes, seed: int) -> Hashes:
    """Like splitmix64's finalizer: another order of the same hashes for each seed."""
    with np.errstate(over="ignore"):
        mixed = values + np.full_like(values, seed % 2**64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        last: Hashes = mixed ^ (mixed >> np.uint64(31))
    return last
