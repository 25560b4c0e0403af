"""May a job cost what it is estimated to cost? Pure. The upper end of the estimate decides: a promise that holds in
half of all cases is none.

The first row that fits, from above:

| upper end of the cost                | and                                         | decision |
|--------------------------------------|---------------------------------------------|----------|
| over the budget's `max_usd`          |                                             | refuse   |
| over the submitter's own `max_usd`   |                                             | refuse   |
| any, or unknown                      | `allow_auto_approve` is off                 | wait     |
| unknown                              | the submitter set a `max_usd`               | wait     |
| any, or unknown                      | the submitter approved it beforehand        | approve  |
| at or under `soft_usd`               |                                             | approve  |
| over `soft_usd`                      |                                             | wait     |
| unknown                              | `unknown` is approve                        | approve  |
| unknown                              | `unknown` is wait                           | wait     |

`wait` is for a person: approve, optimize or cancel. Nobody can approve what is over the budget's maximum: whoever may
spend more raises it in the policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["approve", "wait", "refuse"]
UnknownCost = Literal["approve", "wait"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Of one job, in US dollars.

    `unknown` is `approve` by default: machines without a price are mostly their owner's own, where training costs what
    is paid anyway, and a gate that asks at every job is one that nobody reads. Rented machines either are in the table
    of prices or are worth a declared one; where they aren't, `wait` is right.
    """

    max_usd: float = 5.0
    soft_usd: float = 2.0
    allow_auto_approve: bool = True
    unknown: UnknownCost = "approve"


@dataclass(frozen=True, slots=True)
class Decision:
    """`reason` is for a person."""

    verdict: Verdict
    reason: str


def decide(usd_high: float | None, budget: Budget, *, approved: bool = False, max_usd: float | None = None) -> Decision:
    """The table above. `usd_high` None is unknown. `approved` and `max_usd` are the submitter's words: yes to what a
    person would be asked about, and what it may cost at most."""
    cost = "what it costs is unknown" if usd_high is None else f"it may cost {dollars(usd_high)}"
    if usd_high is not None and usd_high > budget.max_usd:
        return Decision("refuse", f"{cost}, and the budget of a job is {dollars(budget.max_usd)}")
    if usd_high is not None and max_usd is not None and usd_high > max_usd:
        return Decision("refuse", f"{cost}, and its submitter pays {dollars(max_usd)} at most")
    if not budget.allow_auto_approve:
        return Decision("wait", f"{cost}, and by this mesh's policy a person approves every job")
    if usd_high is None and max_usd is not None:
        return Decision("wait", f"{cost}, and its submitter pays {dollars(max_usd)} at most")
    if approved:
        return Decision("approve", f"{cost}, and its submitter approved that beforehand")
    if usd_high is None:
        said = "is approved" if budget.unknown == "approve" else "a person approves"
        return Decision(budget.unknown, f"{cost}, which {said} by this mesh's policy")
    if usd_high <= budget.soft_usd:
        return Decision("approve", f"{cost}; up to {dollars(budget.soft_usd)} nobody is asked")
    return Decision("wait", f"{cost}; over {dollars(budget.soft_usd)} a person approves")


def dollars(usd: float) -> str:
    """Cents, or as many digits as a smaller amount needs to be seen."""
    return f"${usd:.2f}" if usd == 0 or usd >= 0.01 else f"${usd:.2g}"
