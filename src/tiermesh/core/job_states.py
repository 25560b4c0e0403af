"""The states of a job, and what leads from one to the next.

| state      | event     | next       |                                                            |
|------------|-----------|------------|------------------------------------------------------------|
| estimating | admit     | queued     | the estimate is within the soft limit                      |
| estimating | ask       | waiting    | a person is to decide                                      |
| estimating | refuse    | refused    | over the limit, or no node will ever take it               |
| estimating | postpone  | queued     | no node that is here is large enough to try it             |
| waiting    | approve   | queued     | by a person                                                |
| waiting    | optimize  | estimating | with a cheaper spec, then the gate again                   |
| queued     | begin     | running    | an attempt is ordered on a node, or told of by one         |
| queued     | reconsider| estimating | postponed, and now one may be: then the gate               |
| queued     | refuse    | refused    | no node will ever take it                                  |
| queued     | fail      | failed     | moved too often                                            |
| running    | interrupt | queued     | stopped after a checkpoint, or its node is gone            |
| running    | retry     | queued     | it failed, and an edited spec may do better                |
| running    | reconsider| estimating | the same, with a spec that costs more: the gate again      |
| running    | fail      | failed     |                                                            |
| running    | cancel    | cancelling | the worker saves first                                     |
| cancelling | interrupt | cancelled  |                                                            |
| cancelling | fail      | cancelled  | nobody wants to know any more                              |
| others that are no end | cancel   | cancelled | nothing runs                                     |
| estimating, waiting    | begin    | running   | the other half had gone further                  |
| any but completed      | complete | completed | an attempt ended well; late, from a node that was out of reach, too |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from tiermesh.types import JobState

JobEvent = Literal[
    "admit",
    "approve",
    "ask",
    "refuse",
    "postpone",
    "optimize",
    "begin",
    "interrupt",
    "retry",
    "reconsider",
    "complete",
    "fail",
    "cancel",
]
TRANSITIONS: Mapping[tuple[JobState, JobEvent], JobState] = {
    ("estimating", "admit"): "queued",
    ("estimating", "ask"): "waiting",
    ("estimating", "refuse"): "refused",
    ("estimating", "postpone"): "queued",
    ("estimating", "cancel"): "cancelled",
    ("estimating", "begin"): "running",
    ("estimating", "complete"): "completed",
    ("waiting", "approve"): "queued",
    ("waiting", "optimize"): "estimating",
    ("waiting", "cancel"): "cancelled",
    ("waiting", "begin"): "running",
    ("waiting", "complete"): "completed",
    ("queued", "begin"): "running",
    ("queued", "reconsider"): "estimating",
    ("queued", "refuse"): "refused",
    ("queued", "fail"): "failed",
    ("queued", "cancel"): "cancelled",
    ("queued", "complete"): "completed",
    ("running", "interrupt"): "queued",
    ("running", "retry"): "queued",
    ("running", "reconsider"): "estimating",
    ("running", "complete"): "completed",
    ("running", "fail"): "failed",
    ("running", "cancel"): "cancelling",
    ("cancelling", "interrupt"): "cancelled",
    ("cancelling", "fail"): "cancelled",
    ("cancelling", "complete"): "completed",
    ("cancelled", "complete"): "completed",
    ("failed", "complete"): "completed",
    ("refused", "complete"): "completed",
}
ENDS: Mapping[JobState, int] = {"refused": 1, "failed": 2, "cancelled": 3, "completed": 4}
"""States that nothing follows, with their rank when two halves of a partition ended differently."""
OVER: frozenset[JobState] = frozenset(ENDS)
