"""The roster: versions, deltas between any two states, and the order of succession."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from tests.core.stage import ME, WALL, A, B, C, D, member, session, status

from tiermesh.core.constants import TIMING, Timing
from tiermesh.core.membership import NEVER_JOINED, Roster, policy_stamp, succession_key
from tiermesh.core.messages import Stamp
from tiermesh.types import NO_BALLOT, Ballot, Load, Member, NodeId, Policy


def roster(me: NodeId = ME, timing: Timing = TIMING) -> Roster:
    return Roster(Member(me, session(me), status(me), NEVER_JOINED), Policy(), timing)


def led(me: NodeId = A, timing: Timing = TIMING) -> Roster:
    made = roster(me, timing)
    made.crown(Ballot(10, me))
    made.admit(me, session(me), status(me))
    return made


class TestSuccession:
    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (member(B, 9, tier=0), member(A, 1, tier=2, eligible=False)),
            (member(B, 9, tier=2), member(A, 1, tier=1)),
            (member(B, 9, tier=0), member(A, 1, tier=None)),
            (member(B, 1), member(A, 2)),
            (member(A, 1), member(B, 1)),
            (member(B, 9, tier=0), replace(member(A, 1, tier=2), state="draining")),
            (member(B, 9, tier=0), replace(member(A, 1, tier=2), state="down", down_since=1.0)),
        ],
    )
    def test_the_first_comes_before_the_second(self, first: Member, second: Member) -> None:
        assert succession_key(first) < succession_key(second)


class TestChanges:
    def test_each_change_is_a_version_and_no_change_is_none(self) -> None:
        made = led()
        version = made.version
        assert made.admit(B, session(B), status(B))
        assert made.version == version + 1
        assert not made.admit(B, session(B), status(B))
        assert made.version == version + 1

    def test_up_counts_those_that_are_not_down(self) -> None:
        made = led()
        made.admit(B, session(B), status(B))
        made.admit(C, session(C), replace(status(C), state="draining"))
        assert made.up == 3
        made.mark_down(B, WALL)
        assert made.up == 2
        assert not made.mark_down(B, WALL + 5)
        assert made.members[B].down_since == WALL
        made.remove(B)
        made.remove(C)
        assert made.up == 1
        assert not made.remove(C)

    def test_members_are_numbered_as_they_come_and_keep_it_while_they_stay(self) -> None:
        made = led()
        made.admit(B, session(B), status(B))
        made.admit(C, session(C), status(C))
        assert [made.members[node].joined for node in (A, B, C)] == [1, 2, 3]
        made.admit(B, session(B, 2), replace(status(B), load=Load(active=1)))
        assert made.members[B].joined == 2
        made.mark_down(B, WALL)
        made.admit(B, session(B, 2), status(B))
        assert made.members[B].joined == 4

    def test_views_are_frozen_and_the_same_object_until_something_changes(self) -> None:
        made = led()
        view = made.view(A)
        assert made.view(A) is view
        assert made.view(None) is not view
        made.admit(B, session(B), status(B))
        assert B not in view.members
        with pytest.raises(TypeError):
            view.members[B] = member(B, 1)  # type: ignore[index]


class TestUpdates:
    def test_a_stranger_gets_the_full_view(self) -> None:
        made = led()
        for held in (None, (NO_BALLOT, 0), (Ballot(9, B), 1), (Ballot(10, A), 99)):
            assert made.update_since(held).base is None

    def test_who_holds_a_state_of_an_inherited_roster_gets_a_delta_too(self) -> None:
        made, copy = led(), roster()
        made.admit(B, session(B), status(B))
        copy.apply(made.update_since(None))
        held = copy.stamp
        copy.crown(Ballot(20, ME))
        copy.mark_down(A, WALL)
        made_update = copy.update_since(held)
        assert made_update.base == held
        assert [each.id for each in made_update.changed] == [A]

    def test_but_not_who_holds_a_later_state_than_was_inherited(self) -> None:
        made, copy = led(), roster()
        copy.apply(made.update_since(None))
        copy.crown(Ballot(20, ME))
        assert copy.update_since((Ballot(10, A), made.version + 1)).base is None

    def test_who_is_too_far_behind_gets_the_full_view(self) -> None:
        made = led(timing=Timing(history=10))
        start = made.stamp
        for count in range(20):
            made.admit(B, session(B), replace(status(B), load=Load(active=count)))
        assert made.update_since(start).base is None
        assert made.update_since((made.ballot, made.version - 5)).base is not None

    def test_a_member_changed_often_is_sent_once(self) -> None:
        made = led()
        start = made.stamp
        for count in range(5):
            made.admit(B, session(B), replace(status(B), load=Load(active=count)))
        assert made.update_since(start).changed == (made.members[B],)

    def test_a_policy_travels_when_it_changed(self) -> None:
        made = led()
        before = made.stamp
        made.set_policy(Policy(Ballot(10, A), 1, {"x": 1}))
        after = made.stamp
        made.admit(B, session(B), status(B))
        assert made.update_since(before).policy == made.policy
        assert made.update_since(after).policy is None
        assert made.update_since(after).policy_stamp == policy_stamp(made.policy)

    def test_the_own_policy_is_kept_from_a_lower_one(self) -> None:
        made = led()
        own = Policy(Ballot(99, D), 1, {"mine": True})
        copy = Roster(Member(ME, session(ME), status(ME), NEVER_JOINED), own, TIMING)
        assert copy.apply(made.update_since(None))
        assert copy.policy == own

    def test_what_does_not_fit_is_refused_and_changes_nothing(self) -> None:
        made, copy = led(), roster()
        copy.apply(made.update_since(None))
        made.admit(B, session(B), status(B))
        skipped = made.stamp
        made.admit(C, session(C), status(C))
        before = copy.view(A)
        assert not copy.apply(made.update_since(skipped))
        assert copy.view(A) is before

    def test_an_older_state_is_no_news(self) -> None:
        made, copy = led(), roster()
        old = made.update_since(None)
        made.admit(B, session(B), status(B))
        copy.apply(made.update_since(None))
        assert copy.apply(old)
        assert B in copy.members


@pytest.mark.parametrize("seed", range(20))
def test_copies_that_are_sent_deltas_from_any_state_they_hold_equal_the_original(seed: int) -> None:
    """The property the rest rests on, through changes, removals, policies, raises and successions."""
    rng = random.Random(seed)
    timing = Timing(history=rng.choice((3, 20, 4096)))
    leader = led(A, timing)
    copies = [roster(NodeId(f"copy{index}"), timing) for index in range(4)]
    nodes = [NodeId(f"n{index}") for index in range(6)]
    term = 10
    for _ in range(300):
        node = rng.choice(nodes)
        match rng.randrange(7):
            case 0 | 1 | 2:
                leader.admit(node, session(node), replace(status(node), load=Load(active=rng.randrange(9))))
            case 3:
                leader.mark_down(node, WALL)
            case 4:
                leader.remove(node)
            case 5:
                leader.set_policy(Policy(leader.ballot, leader.policy.version + 1, {"x": rng.random()}))
            case _:
                term += 1
                if rng.random() < 0.5:
                    leader.crown(Ballot(term, A))
                else:  # a copy, perhaps behind, succeeds; the old leader becomes a copy
                    index = rng.randrange(len(copies))
                    leader, copies[index] = copies[index], leader
                    leader.crown(Ballot(term, NodeId(f"heir{term}")))
        for copy in copies:
            if rng.random() < 0.3:
                _send(leader, copy, copy.stamp)
    for copy in copies:
        _send(leader, copy, copy.stamp)
        assert copy.stamp == leader.stamp
        assert copy.members == leader.members
        assert copy.up == leader.up == sum(each.state != "down" for each in leader.members.values())
        assert policy_stamp(copy.policy) >= policy_stamp(leader.policy)


def _send(leader: Roster, copy: Roster, held: Stamp) -> None:
    """As a coordinator does it: a delta, and the full view when that does not fit."""
    if not copy.apply(leader.update_since(held)):
        assert copy.apply(leader.update_since(None))
