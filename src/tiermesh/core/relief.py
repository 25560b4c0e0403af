"""What a run does next when memory runs short. Pure.

Two things are looked at: how much of its limit the run uses, as a level, and whether an allocation was refused. What
costs least comes first:

| level | from | what is done |
|---|---|---|
| calm | 0 | nothing |
| watchful | 0.72 | nothing; it is told, once |
| high | 0.85 | freed memory is given back to the system, if that was not just tried |
| severe | 0.92 | the same, and when that was just tried, the next step of the ladder |
| critical | 0.97, or an allocation was refused | the next step of the ladder at once |

The ladder: keep no copies of good states in memory (going back then costs more steps), where they are large enough to
matter; halve the micro-batch and double the accumulation, as often as it goes (costs next to nothing, and the
effective batch holds); compute activations again instead of keeping them (a third of the time); keep the optimizer's
state out of memory (the time to read and write it). Nothing is taken back: what was once too much would be so again,
and a run that swings between two sizes is slower than one that stays small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from typing import Any


class Level(IntEnum):
    """How near the limit."""

    CALM = 0
    WATCHFUL = 1
    HIGH = 2
    SEVERE = 3
    CRITICAL = 4


SHARES = {Level.WATCHFUL: 0.72, Level.HIGH: 0.85, Level.SEVERE: 0.92, Level.CRITICAL: 0.97}
"""Share of the limit from which a level begins."""

TRIM_STEPS = 20
"""Giving memory back costs page faults for it afterwards; it is not tried more often than this."""


class Action(StrEnum):
    """One thing to do."""

    TRIM = "trim"
    FORGET = "forget_copies"
    HALVE = "halve_micro_batch"
    CHECKPOINT = "checkpoint_activations"
    OFFLOAD = "offload_optimizer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What was done so far. Kept in checkpoints: a run that starts again starts as small as it had to become."""

    halvings: int = 0
    """Times that the micro-batch was halved and the accumulation doubled."""
    checkpointing: bool = False
    offloaded: bool = False
    forgotten: bool = False
    """Copies of good states are no longer kept in memory."""
    trimmed_at: int | None = None
    """The step of the last one."""

    def after(self, action: Action, step: int) -> Taken:
        """With `action` done at `step`. Every action ends with giving back what it freed."""
        match action:
            case Action.HALVE:
                return replace(self, halvings=self.halvings + 1, trimmed_at=step)
            case Action.CHECKPOINT:
                return replace(self, checkpointing=True, trimmed_at=step)
            case Action.FORGET:
                return replace(self, forgotten=True, trimmed_at=step)
            case Action.OFFLOAD:
                return replace(self, offloaded=True, trimmed_at=step)
            case Action.TRIM:
                return replace(self, trimmed_at=step)

    def split(self, micro_batch: int, accumulation: int) -> tuple[int, int]:
        """The micro-batch now, and how many of them make a step at most; the last one of a step may be smaller."""
        rows = micro_batch * accumulation
        smaller = max(1, micro_batch >> self.halvings)
        return smaller, -(-rows // smaller)

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint's facts."""
        return {
            "halvings": self.halvings,
            "checkpointing": self.checkpointing,
            "offloaded": self.offloaded,
            "forgotten": self.forgotten,
            "trimmed_at": self.trimmed_at,
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Taken:
        """The inverse."""
        return cls(
            halvings=told["halvings"],
            checkpointing=told["checkpointing"],
            offloaded=told["offloaded"],
            forgotten=told.get("forgotten", False),  # not in older checkpoints
            trimmed_at=told["trimmed_at"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Possible:
    """What this run can do at all. `micro_batch` is what the spec asks for."""

    micro_batch: int
    checkpointing: bool
    """Not when the spec forbids it, or when it is on anyway."""
    offload: bool
    """Not when the optimizer's state is so small that it would spare nothing."""
    forget: bool = False
    """Whether there are copies in memory whose place would be something."""


def level_of(share: float) -> Level:
    """The level for a share of the limit."""
    return max((level for level, begins in SHARES.items() if share >= begins), default=Level.CALM)


def next_action(level: Level, taken: Taken, possible: Possible, *, step: int, refused: bool = False) -> Action | None:
    """What to do now, if anything. None although an allocation was refused: nothing is left to do."""
    if refused or level is Level.CRITICAL:
        return _next_on_ladder(taken, possible)
    just_trimmed = taken.trimmed_at is not None and step - taken.trimmed_at < TRIM_STEPS
    if level >= Level.HIGH and not just_trimmed:
        return Action.TRIM
    return _next_on_ladder(taken, possible) if level is Level.SEVERE else None


def _next_on_ladder(taken: Taken, possible: Possible) -> Action | None:
    if possible.forget and not taken.forgotten:
        return Action.FORGET
    if possible.micro_batch >> taken.halvings > 1:
        return Action.HALVE
    if possible.checkpointing and not taken.checkpointing:
        return Action.CHECKPOINT
    if possible.offload and not taken.offloaded:
        return Action.OFFLOAD
    return None


def tightened(taken: Taken, possible: Possible, *, step: int) -> Taken | None:
    """What a run begins with after the system killed it for its memory: one more step of the ladder; None: no more."""
    action = _next_on_ladder(taken, possible)
    return None if action is None else taken.after(action, step)
