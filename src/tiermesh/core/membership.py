"""Who belongs to the cluster: a roster that makes views, makes deltas between them, and applies them.

The coordinator alone changes a roster, one version per change; everyone else holds a copy of some version. Versions go
on counting through changes of ballot, so `(ballot, version)` names one state. A copy remembers its ancestors: under
which earlier ballots it went up to which version. Whoever holds such a state is sent only what changed since, also by
a new coordinator that inherited the roster.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from types import MappingProxyType

from tiermesh.core.constants import Timing
from tiermesh.core.messages import Key, Stamp, Update
from tiermesh.types import NO_BALLOT, Ballot, Member, NodeId, Policy, SessionId, Status, View

NEVER_JOINED = 2**31
"""Join number of a node that no group has numbered: it comes last of its tier."""
ANCESTORS = 4
"""Earlier ballots remembered: one for the last coordinator, and some for raises in between."""


def succession_key(member: Member) -> Key:
    """Order of succession, lower first: may lead, higher tier, longer membership, id."""
    status = member.status
    barred = not status.eligible or member.state != "up" or status.state != "up"
    return (int(barred), 0 if status.tier is None else -1 - status.tier, member.joined, member.id)


def policy_stamp(policy: Policy) -> Stamp:
    """What orders policies."""
    return (policy.ballot, policy.version)


class Roster:
    """Members, policy and version of one view, with the history that deltas are made of."""

    def __init__(self, own: Member, policy: Policy, timing: Timing) -> None:
        self.ballot: Ballot = NO_BALLOT
        self.version = 0
        self.policy = policy
        self.members: dict[NodeId, Member] = {own.id: own}
        self.up = 1
        self._timing = timing
        self._changes: deque[tuple[int, NodeId]] = deque()
        self._floor = 0
        self._policy_version = 0
        self._ancestors: tuple[Stamp, ...] = ()
        self._view: View | None = None

    @property
    def stamp(self) -> Stamp:
        """The state at hand."""
        return (self.ballot, self.version)

    def view(self, coordinator: NodeId | None) -> View:
        """The state at hand as a frozen view; the same object until something changes."""
        if self._view is None or self._view.coordinator != coordinator:
            members = MappingProxyType(dict(self.members))
            self._view = View(self.ballot, self.version, coordinator, members, self.policy)
        return self._view

    def amend(self, member: Member) -> None:
        """Replace a member in this copy alone: news of a node that follows nobody."""
        self._put(member)

    def put(self, member: Member) -> bool:
        """Add or replace a member; says whether that is a change."""
        if self.members.get(member.id) == member:
            return False
        self._put(member)
        self._log(member.id)
        return True

    def admit(self, node: NodeId, session: SessionId, status: Status) -> bool:
        """Note that `node` is up with this status. One that was away is numbered anew."""
        known = self.members.get(node)
        kept = known is not None and known.state != "down" and known.joined != NEVER_JOINED
        joined = known.joined if kept and known is not None else self._next_number()
        return self.put(Member(node, session, status, joined, status.state))

    def mark_down(self, node: NodeId, wall: float) -> bool:
        """Note that `node` was lost at `wall`, Unix seconds."""
        known = self.members.get(node)
        if known is None or known.state == "down":
            return False
        return self.put(replace(known, state="down", down_since=wall))

    def remove(self, node: NodeId) -> bool:
        """Forget a member."""
        known = self.members.pop(node, None)
        if known is None:
            return False
        self.up -= known.state != "down"
        self._log(node)
        return True

    def set_policy(self, policy: Policy) -> None:
        """Put a policy into force."""
        self.policy = policy
        self._bump()
        self._policy_version = self.version

    def crown(self, ballot: Ballot) -> None:
        """Go on under a higher ballot: a new coordinator's first, or a raise."""
        self._ancestors = (*self._ancestors, self.stamp)[-ANCESTORS:]
        self.ballot = ballot
        self._bump()

    def update_since(self, held: Stamp | None) -> Update:
        """What someone who holds the state `held` lacks; the full view when that can't be told, or for None."""
        if held is None or not self._knows(held):
            return Update(
                self.ballot,
                self.version,
                None,
                tuple(self.members.values()),
                (),
                policy_stamp(self.policy),
                self.policy,
            )
        since = held[1]
        touched = dict.fromkeys(self._touched_after(since))
        return Update(
            self.ballot,
            self.version,
            held,
            tuple(self.members[node] for node in touched if node in self.members),
            tuple(node for node in touched if node not in self.members),
            policy_stamp(self.policy),
            self.policy if self._policy_version > since else None,
        )

    def apply(self, update: Update) -> bool:
        """Take over a coordinator's update. False when it does not fit what is at hand: ask for the full view."""
        if self.ballot == update.ballot and self.version >= update.version:
            return True
        if update.base is None:
            self._replace(update)
            return True
        base_ballot, base_version = update.base
        if self.ballot not in (base_ballot, update.ballot) or self.version < base_version:
            return False
        if update.policy is None and update.policy_stamp > policy_stamp(self.policy):
            return False
        self._extend(update)
        return True

    def _replace(self, update: Update) -> None:
        self.members = {member.id: member for member in update.changed}
        self.up = sum(member.state != "down" for member in update.changed)
        self.ballot, self.version = update.ballot, update.version
        self._changes.clear()
        self._floor = self._policy_version = update.version
        self._ancestors = ()
        self._keep_higher(update.policy)
        self._view = None

    def _extend(self, update: Update) -> None:
        if update.ballot != self.ballot:
            self._ancestors = (*self._ancestors, self.stamp)[-ANCESTORS:]
        self.ballot, self.version = update.ballot, update.version
        for member in update.changed:
            self._put(member)
            self._changes.append((update.version, member.id))
        for node in update.removed:
            known = self.members.pop(node, None)
            self.up -= known is not None and known.state != "down"
            self._changes.append((update.version, node))
        if update.policy is not None:
            self._policy_version = update.version
            self._keep_higher(update.policy)
        self._trim()
        self._view = None

    def _keep_higher(self, policy: Policy | None) -> None:
        if policy is not None and policy_stamp(policy) > policy_stamp(self.policy):
            self.policy = policy

    def _put(self, member: Member) -> None:
        known = self.members.get(member.id)
        self.up += (member.state != "down") - (known is not None and known.state != "down")
        self.members[member.id] = member
        self._view = None

    def _log(self, node: NodeId) -> None:
        self._bump()
        self._changes.append((self.version, node))
        self._trim()

    def _bump(self) -> None:
        self.version += 1
        self._view = None

    def _trim(self) -> None:
        while len(self._changes) > self._timing.history:
            self._floor = self._changes.popleft()[0]

    def _knows(self, held: Stamp) -> bool:
        ballot, version = held
        if ballot == NO_BALLOT or version < self._floor:
            return False  # those that nobody ever led have nothing in common
        if ballot == self.ballot:
            return version <= self.version
        return any(ballot == old and version <= last for old, last in self._ancestors)

    def _touched_after(self, version: int) -> Iterable[NodeId]:
        count = 0
        for changed_at, _ in reversed(self._changes):
            if changed_at <= version:
                break
            count += 1
        return (node for _, node in islice(self._changes, len(self._changes) - count, None))

    def _next_number(self) -> int:
        return 1 + max((each.joined for each in self.members.values() if each.joined != NEVER_JOINED), default=0)
