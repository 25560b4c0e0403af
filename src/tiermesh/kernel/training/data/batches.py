"""Rows of packed documents become tensors that a model computes.

Legend: B rows, T positions. Documents in a row are kept apart by `positions_BT`, which restart with each of them:
transformers derives the mask from that, if it is given NO attention mask and no cache (`use_cache=False`). A mask of
ones, or a cache, would let documents see one another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tiermesh.kernel.training.data.augment import Change
from tiermesh.kernel.training.data.corpus import Corpus
from tiermesh.kernel.training.data.plan import Plan

NOTHING = -100
"""The label of a position from which nothing is learned: torch's own `ignore_index`."""
WIDTH_STEP = 32
"""Rows are as wide as the longest, rounded up to this: fewer shapes for allocators and compilers."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward pass takes. `labels_BT[b, t]` is to be predicted FROM t: it is shifted already.

    Labels are -100 where nothing is to be predicted: prompts, a document's last token, padding. `weights_BT` is None
    where all targets count alike; `targets` is the sum of the weights, or else the number of labels.
    """

    tokens_BT: torch.Tensor
    positions_BT: torch.Tensor
    labels_BT: torch.Tensor
    weights_BT: torch.Tensor | None
    targets: float


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Row b of `chosen` is better than row b of `rejected`; both begin with one prompt. Same shapes, one pair a row."""

    chosen: MicroBatch
    rejected: MicroBatch


Batch = TypeVar("Batch", MicroBatch, PairBatch, covariant=True)


class Source(Protocol[Batch]):
    """Rows to train on, by their number. `digest` changes when any row, or their number, does."""

    @property
    def rows(self) -> int: ...

    @property
    def digest(self) -> str: ...

    def micro(self, rows: Sequence[int], *, epoch: int = 0) -> Batch:
        """These rows as tensors. `epoch` is for what differs each time a row is seen."""

    def targets(self, rows: Sequence[int]) -> float:
        """The `targets` of these rows' batch, without reading a token."""

    def tokens(self, rows: Sequence[int]) -> int:
        """How many positions of these rows hold a token."""


class PackedSource:
    """Documents of a corpus, packed as planned."""

    def __init__(self, corpus: Corpus, plan: Plan, padding: int, change: Change | None = None) -> None:
        self._corpus = corpus
        self._padding = padding
        self._change = change
        self.plan = plan
        self.plans = (plan,)

    @property
    def rows(self) -> int:
        return self.plan.rows

    @property
    def digest(self) -> str:
        return self.plan.digest

    def targets(self, rows: Sequence[int]) -> float:
        return float(self.plan.row_targets[list(rows)].sum())

    def tokens(self, rows: Sequence[int]) -> int:
        return sum(self.plan.row_length(row) for row in rows)

    def micro(self, rows: Sequence[int], *, epoch: int = 0) -> MicroBatch:
        width = _width([self.plan.row_length(row) for row in rows], self.plan.seq_len)
        filling = _Filling(len(rows), width, self._padding)
        for at, row in enumerate(rows):
            for item in self.plan.items_of(row):
                filling.add(at, *_piece(self._corpus, self.plan, int(item)))
        if self._change is not None:
            filling.tokens_BT = self._change(filling.tokens_BT, filling.positions_BT, rows, epoch)
        return filling.batch(self.targets(rows), weighted=self.plan.weighted)


class PairSource:
    """Preference pairs, one a row. The plans are of the better and of the worse answers, one document a row each.

    A pair of which one answer has no target within a row is left out.
    """

    def __init__(self, corpus: Corpus, chosen: Plan, rejected: Plan, padding: int) -> None:
        self._corpus = corpus
        self._padding = padding
        self.plans = (chosen, rejected)
        _, *items = np.intersect1d(chosen.owners, rejected.owners, return_indices=True)
        self._items: tuple[NDArray[np.int64], ...] = tuple(items)
        """Of each pair, its piece in either plan."""

    @property
    def rows(self) -> int:
        return len(self._items[0])

    @property
    def digest(self) -> str:
        return hashlib.sha256(":".join(plan.digest for plan in self.plans).encode()).hexdigest()

    def targets(self, rows: Sequence[int]) -> float:
        """Pairs, by their weights: a preference's loss is a mean over pairs, not over tokens."""
        return float(self.plans[0].weights[self._items[0][list(rows)]].sum())

    def tokens(self, rows: Sequence[int]) -> int:
        """Of both answers, each with its prompt."""
        sides = zip(self.plans, self._items, strict=True)
        return sum(int(plan.lengths[items[list(rows)]].sum()) for plan, items in sides)

    def micro(self, rows: Sequence[int], *, epoch: int = 0) -> PairBatch:
        """`epoch` changes nothing here."""
        items = [found[list(rows)] for found in self._items]
        longest = [int(plan.lengths[found].max()) for plan, found in zip(self.plans, items, strict=True)]
        width = _width(longest, self.plans[0].seq_len)
        chosen, rejected = (self._side(plan, found, width) for plan, found in zip(self.plans, items, strict=True))
        return PairBatch(chosen, rejected)

    def _side(self, plan: Plan, items: NDArray[np.int64], width: int) -> MicroBatch:
        filling = _Filling(len(items), width, self._padding)
        for at, item in enumerate(items):
            filling.add(at, *_piece(self._corpus, plan, int(item)))
        return filling.batch(float(plan.targets[items].sum()), weighted=plan.weighted)


def _piece(corpus: Corpus, plan: Plan, item: int) -> tuple[NDArray[np.int64], NDArray[np.int64], float]:
    """Tokens, their labels and the weight of one planned piece."""
    start, length = int(plan.starts[item]), int(plan.lengths[item])
    reach = length + int(plan.goes_on[item])
    tokens = corpus.tokens[start : start + reach].astype(np.int64)
    labels = np.full(length, NOTHING, dtype=np.int64)
    learned = corpus.learned[start + 1 : start + reach] != 0
    labels[: reach - 1][learned] = tokens[1:][learned]
    return tokens[:length], labels, float(plan.weights[item])


class _Filling:
    """Rows in the making."""

    def __init__(self, rows: int, width: int, padding: int) -> None:
        self.tokens_BT = np.full((rows, width), padding, dtype=np.int64)
        # Padding is a document of its own, behind all others.
        self.positions_BT = np.zeros((rows, width), dtype=np.int64)
        self.labels_BT = np.full((rows, width), NOTHING, dtype=np.int64)
        self.weights_BT = np.zeros((rows, width), dtype=np.float32)
        self._used = [0] * rows

    def add(self, row: int, tokens: NDArray[np.int64], labels: NDArray[np.int64], weight: float) -> None:
        start = self._used[row]
        end = self._used[row] = start + len(tokens)
        self.tokens_BT[row, start:end] = tokens
        self.positions_BT[row, start:end] = np.arange(len(tokens))
        self.labels_BT[row, start:end] = labels
        self.weights_BT[row, start:end] = weight * (labels != NOTHING)

    def batch(self, targets: float, *, weighted: bool) -> MicroBatch:
        return MicroBatch(
            tokens_BT=torch.from_numpy(self.tokens_BT),
            positions_BT=torch.from_numpy(self.positions_BT),
            labels_BT=torch.from_numpy(self.labels_BT),
            weights_BT=torch.from_numpy(self.weights_BT) if weighted else None,
            targets=targets,
        )


def _width(lengths: Sequence[int], seq_len: int) -> int:
    return min(seq_len, -(-max(lengths, default=1) // WIDTH_STEP) * WIDTH_STEP)
