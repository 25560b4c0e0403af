"""Which pieces of which documents are trained on, and which row each is in: a corpus seen with one row length."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tiermesh.kernel.training.data.corpus import Corpus
from tiermesh.kernel.training.data.packing import PACKER_VERSION, Packed, one_each, pack

Long = Literal["split", "cut"]
"""What is done with a document longer than a row: all of it is learned, in pieces; or its beginning alone."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Piece i is `lengths[i]` tokens of the corpus from `starts[i]`; `goes_on[i]` when the next token is its target.

    `row_targets` are what `MicroBatch.targets` counts. `cut` documents lost their end, `unlearnable` ones have no
    target within a row and are left out.
    """

    seq_len: int
    packed: Packed
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    goes_on: NDArray[np.bool_]
    weights: NDArray[np.float32]
    row_targets: NDArray[np.float64]
    digest: str
    cut: int
    unlearnable: int

    @property
    def rows(self) -> int:
        return self.packed.rows

    @property
    def weighted(self) -> bool:
        """Does any target count more than another?"""
        return bool((self.weights != 1).any())

    @property
    def fill(self) -> float:
        """Share of all positions that hold a token."""
        return float(self.lengths.sum() / (self.rows * self.seq_len)) if self.rows else 0.0

    def items_of(self, row: int) -> NDArray[np.int64]:
        return self.packed.items[self.packed.starts[row] : self.packed.starts[row + 1]]

    def row_length(self, row: int) -> int:
        return int(self.lengths[self.items_of(row)].sum())


def plan_rows(corpus: Corpus, documents: NDArray[np.int64], seq_len: int, *, long: Long, packing: bool) -> Plan:
    """Cut and pack these documents of a corpus; one that is named twice is trained on twice."""
    bounds = corpus.bounds
    starts, ends = bounds[documents], bounds[documents + 1]
    pieces = _split(starts, ends, seq_len) if long == "split" else _cut(starts, ends, seq_len)
    starts, lengths, goes_on, owner = pieces
    counts = _targets(corpus.learned, starts, lengths, goes_on)
    kept = counts > 0
    starts, lengths, goes_on, counts = starts[kept], lengths[kept], goes_on[kept], counts[kept]
    weights = corpus.weights[documents[owner[kept]]]
    packed = pack(lengths, seq_len) if packing else one_each(len(lengths))
    by_row = (counts * weights.astype(np.float64))[packed.items]
    sums = np.add.reduceat(by_row, packed.starts[:-1]) if packed.rows else np.zeros(0)
    return Plan(
        seq_len=seq_len,
        packed=packed,
        starts=starts,
        lengths=lengths,
        goes_on=goes_on,
        weights=weights,
        row_targets=sums,
        digest=_digest(corpus.digest, seq_len, packing, starts, lengths),
        cut=int((ends - bounds[documents] > seq_len).sum()) if long == "cut" else 0,
        unlearnable=int(len(documents) - len(np.unique(owner[kept]))),
    )


_Pieces = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]


def _cut(starts: NDArray[np.int64], ends: NDArray[np.int64], seq_len: int) -> _Pieces:
    lengths = np.minimum(ends - starts, seq_len)
    return starts, lengths, np.zeros(len(starts), dtype=np.bool_), np.arange(len(starts))


def _split(starts: NDArray[np.int64], ends: NDArray[np.int64], seq_len: int) -> _Pieces:
    """No target is lost: a piece's last token predicts the first of the next one."""
    # The last token of a document is only ever a target, so it needs no piece of its own.
    counts = np.maximum(1, -(-(ends - starts - 1) // seq_len))
    owner = np.repeat(np.arange(len(starts)), counts)
    first = np.cumsum(counts) - counts
    begins = starts[owner] + (np.arange(len(owner)) - first[owner]) * seq_len
    left = ends[owner] - begins
    lengths = np.minimum(left, seq_len)
    return begins, lengths, left > lengths, owner


def _targets(
    learned: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64], goes_on: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """How many labels each piece has; the first token of a document is nobody's."""
    total = np.zeros(len(learned) + 1, dtype=np.int64)
    np.cumsum(learned, out=total[1:])
    return total[starts + lengths + goes_on] - total[starts + 1]


def _digest(corpus: str, seq_len: int, packing: bool, *parts: NDArray[np.int64]) -> str:
    digest = hashlib.sha256(f"{corpus}:{seq_len}:{packing}:{PACKER_VERSION}".encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
