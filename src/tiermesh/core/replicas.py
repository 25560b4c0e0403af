"""Which nodes keep a copy of what a job needs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from tiermesh.types import Member, NodeId, View


def copy_order(view: View, me: NodeId, job: str, held: Collection[NodeId] = ()) -> tuple[NodeId, ...]:
    """All others that may be asked, the best first.

    Those that have an earlier copy come first: most of a new one is there already. Then machines that don't train and
    have nothing wrong with them, in an order that differs from job to job, so that copies spread.
    """
    others = (member for member in view.members.values() if member.id != me and _takes(member))
    return tuple(
        member.id
        for member in sorted(
            others,
            key=lambda one: (
                one.id not in held,
                bool(one.status.training),
                one.status.health.score is not None and one.status.health.score < 60,
                hashlib.sha256(f"{job} {one.id}".encode()).digest(),
            ),
        )
    )


def lacks_copies(view: View, holders: Collection[NodeId], wanted: int) -> bool:
    """Should more nodes have what `holders` have? Where one of these is there to give it, and another to take it."""
    there = [member for member in view.members.values() if member.state != "down"]
    have = sum(member.id in holders for member in there)
    return 0 < have < wanted and any(_takes(member) for member in there if member.id not in holders)


def _takes(member: Member) -> bool:
    return member.state == "up" and member.status.state == "up"
