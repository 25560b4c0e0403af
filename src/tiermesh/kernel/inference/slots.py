"""Which sequence has which slot of the cache, and what a slot still holds of those before. Decisions only, no tensors.

A slot keeps the keys and values of the sequence that left it. The next turn of that conversation takes the slot and
computes only what is new; a sequence that shares the beginning of one which still runs gets a copy of that beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

MIN_COPY_TOKENS = 16
"""A shorter beginning is computed in less time than it takes to decide."""


@dataclass(slots=True)
class Slot:
    """`tokens` are those whose keys and values it holds, computed with `adapter`."""

    index: int
    tokens: list[int] = field(default_factory=list)
    adapter: str | None = None
    busy: bool = False
    released: int = 0
    """Grows with each release in the whole cache: the least is the least recently used."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a sequence goes. The first `reused` of its tokens are there, after a copy from `source` if there is one."""

    slot: Slot
    reused: int
    source: Slot | None = None


class Slots:
    """All slots of one cache."""

    def __init__(self, count: int) -> None:
        self._slots = tuple(Slot(index) for index in range(count))
        self._releases = 0

    @property
    def free(self) -> int:
        """Slots that no sequence has."""
        return sum(not slot.busy for slot in self._slots)

    def take(self, tokens: Sequence[int], adapter: str | None) -> Placement:
        """Give a slot to a sequence that begins with `tokens`, of which one at least is left to compute.

        There must be a free one. What the placement says is reused must be copied before the next call.
        """
        placement = self._place(tokens, adapter)
        slot = placement.slot
        slot.tokens = list(tokens[: placement.reused])
        slot.adapter = adapter
        slot.busy = True
        return placement

    def take_fresh(self) -> Slot:
        """Give a slot for what nobody will go on with. There must be a free one."""
        slot = _oldest(slot for slot in self._slots if not slot.busy)
        slot.tokens = []
        slot.busy = True
        return slot

    def release(self, slot: Slot, *, spoilt: bool = False) -> None:
        """The sequence has ended; what it leaves may serve others unless it is `spoilt`."""
        self._releases += 1
        slot.busy = False
        slot.released = self._releases
        if spoilt:
            slot.tokens = []

    def _place(self, tokens: Sequence[int], adapter: str | None) -> Placement:
        free = [slot for slot in self._slots if not slot.busy]
        assert free, "the caller asks only when there is a free slot"
        shared = {s.index: _shared(s.tokens, tokens) if s.adapter == adapter else 0 for s in self._slots}
        best = max(self._slots, key=lambda slot: (shared[slot.index], not slot.busy))
        reused = shared[best.index]
        oldest = _oldest(free)
        if reused < MIN_COPY_TOKENS and (best.busy or best is not oldest):
            return Placement(oldest, 0)
        # A slot is continued in place unless that would destroy more than it saves.
        if not best.busy and (best is oldest or 2 * reused >= len(best.tokens)):
            return Placement(best, reused)
        return Placement(oldest, reused, best)


def _oldest(free: Iterable[Slot]) -> Slot:
    """The least recently used, and among those that hold nothing the first: neighbours are computed together."""
    return min(free, key=lambda slot: (len(slot.tokens) > 0, slot.released, slot.index))


def _shared(held: Sequence[int], wanted: Sequence[int]) -> int:
    """Length of the common beginning, less than all of `wanted`."""
    limit = min(len(held), len(wanted) - 1)
    if held[:limit] == wanted[:limit]:
        return limit
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if held[:middle] == wanted[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
