"""Documents share rows so that hardly a position is wasted: best-fit decreasing, planned on whole groups of equals.

Ding et al., "Fewer truncations improve language modeling" (arXiv 2404.10830), pack the same way. Lengths are whole
numbers up to the row's, so all documents of one length are placed together: a row that fits best takes as many of
them as go in, which is what placing them one by one does, and each step empties a group of rows or of documents.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

PACKER_VERSION = 1
"""Another one puts other documents together, so that a run can't go on from where it was."""

Longs = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Packed:
    """Row r holds the items `items[starts[r] : starts[r + 1]]`; every item is in one row, and no row is empty."""

    items: Longs
    starts: Longs

    @property
    def rows(self) -> int:
        return len(self.starts) - 1


def pack(lengths: Longs, row_length: int) -> Packed:
    """Plan rows of at most `row_length` positions; each length must be 1 to `row_length`. The same plan every time."""
    assert not len(lengths) or 0 < lengths.min() <= lengths.max() <= row_length
    by_length = np.argsort(-lengths, kind="stable")
    falling = lengths[by_length]
    row_of = np.empty(len(lengths), dtype=np.int64)
    spaces = _Spaces(row_length)
    changes = np.flatnonzero(np.diff(falling)) + 1
    for start, end in pairwise([0, *changes.tolist(), len(falling)]):
        if start < end:
            _place(int(falling[start]), row_of[start:end], spaces)
    return _grouped(by_length, row_of, spaces.rows)


def one_each(count: int) -> Packed:
    """A row for every item: for models that would let packed documents see one another."""
    return Packed(items=np.arange(count, dtype=np.int64), starts=np.arange(count + 1, dtype=np.int64))


class _Spaces:
    """Rows by the space left in them."""

    def __init__(self, row_length: int) -> None:
        self._row_length = row_length
        self._rows: dict[int, Longs] = {}
        self._sizes: list[int] = []
        """Keys of `_rows`, in order."""
        self.rows = 0

    def best(self, length: int, count: int) -> tuple[int, Longs]:
        """Take the rows with the least space that `length` fits in, as many as `count` items need; else new ones."""
        at = bisect_left(self._sizes, length)
        if at == len(self._sizes):
            wanted = -(-count // (self._row_length // length))
            self.rows += wanted
            return self._row_length, np.arange(self.rows - wanted, self.rows)
        space = self._sizes[at]
        wanted = -(-count // (space // length))
        rows = self._rows[space]
        if wanted < len(rows):
            self._rows[space] = rows[wanted:]
            return space, rows[:wanted]
        del self._sizes[at], self._rows[space]
        return space, rows

    def put(self, space: int, rows: Longs) -> None:
        if not space or not len(rows):
            return
        if space in self._rows:
            self._rows[space] = np.concatenate((self._rows[space], rows))
        else:
            self._rows[space] = rows
            insort(self._sizes, space)


def _place(length: int, row_of: Longs, spaces: _Spaces) -> None:
    """Find rows for all items of one length; they are written into `row_of`."""
    placed = 0
    while placed < len(row_of):
        space, rows = spaces.best(length, len(row_of) - placed)
        each = space // length
        count = min(len(rows) * each, len(row_of) - placed)
        row_of[placed : placed + count] = np.repeat(rows, each)[:count]
        placed += count
        full, partly = divmod(count, each)
        spaces.put(space - each * length, rows[:full])
        spaces.put(space - partly * length, rows[full : full + 1] if partly else rows[:0])


def _grouped(by_length: Longs, row_of: Longs, rows: int) -> Packed:
    starts = np.zeros(rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(row_of, minlength=rows), out=starts[1:])
    return Packed(items=by_length[np.argsort(row_of, kind="stable")], starts=starts)
