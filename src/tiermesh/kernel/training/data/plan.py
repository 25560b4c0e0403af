"""Which pieces of which documents are trained on, and which row each is in: a corpus seen with one row length."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tiermesh.kernel.training.data.corpus import Corpus
from tiermesh.kernel.training.data.packing import PACKER_VERSION, Packed, one_each, pack
from tiermesh.protocol.training import Task

PLAN_VERSION = 1
"""Of what is kept of a plan."""
STRETCH_TOKENS = 4_000_000
"""Of the corpus, looked at at once: 32 MB of counts."""

Long = Literal["split", "cut"]
"""What is done with a document longer than a row: all of it is learned, in pieces; or its beginning alone."""


def long_for(task: Task) -> Long:
    """Half an answer would teach to stop anywhere or never; running text has no such end."""
    return "split" if task == "pretrain" else "cut"


@dataclass(frozen=True, slots=True)
class Plan:
    """Row r holds the pieces `items[row_starts[r] : row_starts[r + 1]]`; piece i is `lengths[i]` tokens of the corpus
    from `starts[i]`, and the token behind them is a target too where `goes_on[i]`. `owners[i]` is the place of its
    document in the list that was planned.

    `targets` of a piece and `row_targets` are what `MicroBatch.targets` counts. `cut` documents lost their end,
    `unlearnable` ones have no target within a row and are left out.
    """

    seq_len: int
    items: NDArray[np.int64]
    row_starts: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    goes_on: NDArray[np.bool_]
    owners: NDArray[np.int64]
    weights: NDArray[np.float32]
    targets: NDArray[np.float64]
    row_targets: NDArray[np.float64]
    cut: int
    unlearnable: int
    digest: str

    @property
    def rows(self) -> int:
        return len(self.row_starts) - 1

    @property
    def weighted(self) -> bool:
        """Does any target count more than another?"""
        return bool((self.weights != 1).any())

    @property
    def fill(self) -> float:
        """Share of all positions that hold a token."""
        return float(self.lengths.sum() / (self.rows * self.seq_len)) if self.rows else 0.0

    def items_of(self, row: int) -> NDArray[np.int64]:
        return self.items[self.row_starts[row] : self.row_starts[row + 1]]

    def row_length(self, row: int) -> int:
        return int(self.lengths[self.items_of(row)].sum())


def plan_rows(corpus: Corpus, documents: NDArray[np.int64], seq_len: int, *, long: Long, packing: bool) -> Plan:
    """Cut and pack these documents of a corpus; one that is named twice is trained on twice."""
    first, end = corpus.bounds[documents], corpus.bounds[documents + 1]
    starts, lengths, goes_on, owner = (_split if long == "split" else _cut)(first, end, seq_len)
    counts = _targets(corpus.learned, starts, lengths, goes_on)
    kept = counts > 0
    starts, lengths, goes_on, counts, owner = starts[kept], lengths[kept], goes_on[kept], counts[kept], owner[kept]
    weights = corpus.weights[documents[owner] // corpus.facts.documents_a_record].astype(np.float32)
    packed = pack(lengths, seq_len) if packing else one_each(len(lengths))
    targets: NDArray[np.float64] = counts.astype(np.float64) * weights
    return Plan(
        seq_len=seq_len,
        items=packed.items,
        row_starts=packed.starts,
        starts=starts,
        lengths=lengths,
        goes_on=goes_on,
        owners=owner,
        weights=weights,
        targets=targets,
        row_targets=_row_sums(targets, packed),
        cut=int((end - first > seq_len).sum()) if long == "cut" else 0,
        unlearnable=len(documents) - len(np.unique(owner)),
        digest=_digest(corpus.digest, seq_len, packed.items, packed.starts, starts, lengths, goes_on, weights),
    )


def cached_plan(folder: Path, key: str, make: Callable[[], Plan]) -> Plan:
    """The plan of this key from a folder, or made and kept there. Safe when killed and when done twice at once."""
    kept = folder / f"plan-{hashlib.sha256(f'{key}:{PACKER_VERSION}:{PLAN_VERSION}'.encode()).hexdigest()[:32]}.npz"
    try:
        with kept.open("rb") as file, np.load(file, allow_pickle=False) as found:
            return Plan(**{name: _plain(found[name]) for name in _NAMES})
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError):
        plan = make()
    arrays: dict[str, Any] = {name: np.asarray(getattr(plan, name)) for name in _NAMES}
    staging = folder / f".{kept.name}.{os.getpid()}"
    with staging.open("wb") as written:
        np.savez(written, **arrays)
        written.flush()
        os.fsync(written.fileno())
    staging.replace(kept)
    return plan


_NAMES = tuple(one.name for one in fields(Plan))


def _plain(value: NDArray[Any]) -> Any:
    return value.item() if value.ndim == 0 else value


def _row_sums(values: NDArray[np.float64], packed: Packed) -> NDArray[np.float64]:
    if not packed.rows:
        return np.zeros(0)
    sums: NDArray[np.float64] = np.add.reduceat(values[packed.items], packed.starts[:-1])
    return sums


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
    """How many labels each piece has; a document's first token is nobody's. Reads the corpus a stretch at a time."""
    counts = np.empty(len(starts), dtype=np.int64)
    by_start = np.argsort(starts, kind="stable")
    begins, ends = starts[by_start], (starts + lengths + goes_on)[by_start]
    low = 0
    while low < len(begins):
        high = int(np.searchsorted(begins, begins[low] + STRETCH_TOKENS))
        here = int(begins[low])
        stretch = learned[here : int(ends[low:high].max())]
        total = np.concatenate(([0], np.cumsum(stretch, dtype=np.int64)))
        counts[by_start[low:high]] = total[ends[low:high] - here] - total[begins[low:high] + 1 - here]
        low = high
    return counts


def _digest(corpus: str, seq_len: int, *parts: NDArray[Any]) -> str:
    digest = hashlib.sha256(f"{corpus}:{seq_len}".encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
