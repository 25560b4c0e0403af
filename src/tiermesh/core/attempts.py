"""An attempt: one order to train on one node with one spec, and what the node said of it. Both join with their like.

Stopped, or its node restarted, the same attempt goes on there; anywhere else, or with another spec, it is the next
attempt, and the one before is fenced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from tiermesh.core.codec import encode_value
from tiermesh.types import AttemptState, Ballot, NodeId

AttemptId = tuple[int, Ballot]
"""Number, and the ballot under which it was ordered first: two halves of a partition may both have a second attempt."""
Cause = Literal["first", "moved", "retried"]
"""Why there is this attempt: the first, the node before was lost or left, or the one before failed."""

AttemptStanding = Literal["ordered", "running", "stopped", "completed", "failed", "superseded"]
PREPARING = "prepare"
"""The phase before a run begins: what it needs is brought, and memory is looked for."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved state of a run. `artifact` is the digest of its manifest; `holders` are nodes that have it whole."""

    step: int
    artifact: str = ""
    holders: tuple[NodeId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the node that trains said of an attempt. None is unknown."""

    seq: int = 0
    """Rises with everything that is said of one attempt, also over restarts of the node (as Unix milliseconds do)."""
    state: AttemptState = "running"
    phase: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    checkpoint: Checkpoint | None = None
    failure: str | None = None
    """The kind of failure, when it failed."""
    micro_batch_size: int | None = None
    """What a run that failed for lack of memory had come down to by itself."""
    reason: str = ""
    result: Mapping[str, object] = field(default_factory=dict)
    """What the run told at its good end."""
    artifact: str = ""
    """The digest of the result's manifest."""
    holders: tuple[NodeId, ...] = ()
    """Nodes that have the result whole."""
    failed_gates: tuple[str, ...] = ()
    """What the coordinator found wanting in the result; nodes don't say this."""

    @property
    def counts(self) -> bool:
        """Is this a good end?"""
        return self.state == "completed" and not self.failed_gates

    @property
    def is_end(self) -> bool:
        """Will the node do no more about it, whatever it is told? A stopped attempt may go on."""
        return self.state in ("completed", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One order to train. All but `told` and `fenced` never change."""

    number: int
    ballot: Ballot
    node: NodeId
    spec: Mapping[str, object]
    cause: Cause = "first"
    why: str = ""
    retries: int = 0
    """How many attempts up to here were made because one before had failed."""
    ordered_at: float = 0.0
    """Unix seconds."""
    told: Told | None = None
    fenced: bool = False
    """Replaced by another attempt: whoever works at it is to stop."""

    @property
    def id(self) -> AttemptId:
        return self.number, self.ballot

    @property
    def is_live(self) -> bool:
        """May it still come to something?"""
        return not self.fenced and not self.is_end

    @property
    def is_end(self) -> bool:
        return self.told is not None and self.told.is_end

    @property
    def counts(self) -> bool:
        return self.told is not None and self.told.counts


def join_all(one: tuple[Attempt, ...], other: tuple[Attempt, ...]) -> tuple[Attempt, ...]:
    """The union, by number and ballot."""
    known: dict[AttemptId, Attempt] = {}
    for each in (*one, *other):
        known[each.id] = join_attempts(known[each.id], each) if each.id in known else each
    return tuple(known[key] for key in sorted(known))


def join_attempts(one: Attempt, other: Attempt) -> Attempt:
    """What both know of one attempt."""
    assert one.id == other.id
    first = min(one, other, key=lambda each: canonical(replace(each, told=None, fenced=False)))
    return replace(first, told=join_told(one.told, other.told), fenced=one.fenced or other.fenced)


def join_told(one: Told | None, other: Told | None) -> Told | None:
    """What was said last; a good end before an end before all."""
    if one is None or other is None or one == other:
        return other if one is None else one
    return max(one, other, key=_told_order)


def canonical(value: object) -> str:
    """Equal for equal values alone: the last resort of an order."""
    return json.dumps(encode_value(value), sort_keys=True)


def _told_order(told: Told) -> tuple[bool, bool, int, str]:
    return told.counts, told.is_end, told.seq, canonical(told)
