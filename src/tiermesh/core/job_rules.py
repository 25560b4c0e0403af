"""By what rules the coordinator leads jobs: those of the policy, and the times behind them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tiermesh.core.gate import Budget
from tiermesh.core.remediation import MAX_RETRIES

COLLECT_S = 3.0
"""A new coordinator waits so long for the records of the others before it orders anything."""
AGAIN_S = 1.0
"""What was sent and not answered is sent again after this."""
OBJECTION_S = 5.0
"""A node that said no is asked again after this, doubling up to `OBJECTION_MAX_S`: memory is freed by other programs,
which tell nobody."""
OBJECTION_MAX_S = 60.0
ESTIMATE_S = 90.0
"""An estimate takes half a minute at most, after the data was fetched."""
STOP_S = 12.0
"""From a person's cancel until the job is over whatever its node says; there the worker is killed after 10 s."""
SILENT_LEASES = 3
"""Leases that an attempt may be silent on a node that is up, asked again all the while, until it is moved."""
MAX_ATTEMPTS = 100
"""A job that was moved so often is not going to end."""
MAX_ESTIMATES = 2
"""Of one node at a time: equal jobs are answered from what it knows, others wait for one another."""
THINK_S = 0.5
"""How often a coordinator looks at what is under way."""
MAX_INTERRUPTIONS = 3
"""An attempt that stopped so often in a row by itself, without a step done, has failed."""
WAITING_LIMIT = 10_000
"""Jobs that wait. More are days of work: somebody's loop runs wild."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRules:
    """Of the policy."""

    lease_s: float = 5.0
    max_retries: int = MAX_RETRIES
    replicas: int = 2
    """Nodes that have a job's record, the coordinator included, as far as there are so many."""
    min_members: int = 1
    """Nodes that must be up, the coordinator included, before a new job is taken."""
    slots: int = 1
    train_on_battery: bool = False
    waiting_limit: int = WAITING_LIMIT
    budget: Budget = field(default_factory=Budget)
