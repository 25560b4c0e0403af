"""How a step's work is shared out. Pure: numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence

PREFILL_TOKENS = 512
"""Prompt tokens a step when nobody waits for a next token: full speed, and left within a second on a slow machine."""
SHARED_PREFILL_TOKENS = 128
"""The same while others generate: they pause for a tenth of a second or so, at two thirds of the full speed."""
CALL_COST_KEYS = 400
"""Starting one attention costs as much as this many keys of one sequence (measured: 30 us, 0.07 us a key)."""


def share_prefill(remaining: Sequence[int], budget: int) -> list[int]:
    """How many prompt tokens each sequence gets: equal shares, and what the short ones leave goes to the long ones."""
    shares = [0] * len(remaining)
    left = budget
    for turn, index in enumerate(sorted(range(len(remaining)), key=lambda i: (remaining[i], i))):
        shares[index] = min(remaining[index], left // (len(remaining) - turn))
        left -= shares[index]
    return shares


def group_neighbours(slots: Sequence[int], lengths: Sequence[int]) -> list[range]:
    """Which sequences (given in the order of their slots) are computed by one attention: ranges of indices.

    Those in one range have adjacent slots. All are padded to the longest, so a range ends where that costs more than
    another call.
    """
    groups: list[range] = []
    for index in range(len(slots)):
        if groups and slots[index] == slots[index - 1] + 1:
            last = groups[-1]
            grown = range(last.start, index + 1)
            if _padding(lengths, grown) - _padding(lengths, last) <= CALL_COST_KEYS:
                groups[-1] = grown
                continue
        groups.append(range(index, index + 1))
    return groups


def _padding(lengths: Sequence[int], group: range) -> int:
    held = lengths[group.start : group.stop]
    return max(held) * len(held) - sum(held)


class FairShare:
    """Prompts slow those who generate by half at most: after each step with prompt tokens, some without.

    Fed with the duration of every step.
    """

    def __init__(self) -> None:
        self._debt_s = 0.0
        self._step_s = 0.0
        """A usual step without prompt tokens."""

    @property
    def may_prefill(self) -> bool:
        """True when those who generate have had their share."""
        return self._debt_s <= 0.0

    def stepped(self, duration_s: float, *, prefilled: bool, generated: bool) -> None:
        """A step took this long; `generated`: somebody got a next token in it who was generating before."""
        if not generated:
            self._debt_s = 0.0
        elif prefilled:
            self._debt_s += duration_s - 2 * self._step_s
        else:
            self._step_s = duration_s if self._step_s == 0.0 else 0.8 * self._step_s + 0.2 * duration_s
            self._debt_s = max(0.0, self._debt_s - self._step_s)
