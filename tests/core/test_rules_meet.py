"""Rules 11 and 12, and what the specification left to the builder: goodbye, twins, removal, policy, eligibility."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.core.stage import ME, WALL, A, B, C, D, E, Stage, address, contact, member, session, status

from tiermesh.core.constants import TIMING
from tiermesh.core.effects import Persist, Remember, Send
from tiermesh.core.messages import (
    Beat,
    Bye,
    Come,
    Follows,
    Hello,
    Join,
    Moved,
    NoLead,
    Pre,
    Probe,
    Removed,
    Taken,
    Update,
    Uplink,
    Welcome,
)
from tiermesh.types import NO_BALLOT, Address, Ballot, Contact, NodeId, Policy, View

FIRST = NodeId("0")
LOW, HIGH = Ballot(1, E), Ballot(10**12, E)


def probe(ballot: Ballot, size: int, reign_s: float) -> Probe:
    return Probe(ballot, size, reign_s, (address(ballot.node_id),))


class TestRule11Raise:
    """A joiner that has promised more than the coordinator's ballot does not depose it."""

    def test_the_coordinator_goes_above_the_promise_and_welcomes(self) -> None:
        stage = Stage().leads(A)
        stage.ticks_until(stage.now + 0.5).joins(B, promised=HIGH)
        assert stage.order()[:2] == ["Persist", "Welcome"]
        assert stage.role == "lead"
        ballot = stage.view.ballot
        assert ballot.term > HIGH.term
        assert ballot.node_id == ME
        assert stage.sent(Welcome, B)[0].update.ballot == ballot

    def test_its_followers_hear_of_the_new_ballot_from_it(self) -> None:
        stage = Stage().leads(A)
        stage.ticks_until(stage.now + 0.5).joins(B, promised=HIGH)
        assert stage.sent(Update, A)[0].ballot == stage.view.ballot

    def test_and_adopt_it(self) -> None:
        stage = Stage().follows()
        stage.hears(A, Update(Ballot(500, A), 2, (Ballot(100, A), 1)))
        assert stage.role == "follow"
        assert stage.persisted() == [Ballot(500, A)]
        assert stage.order() == ["Persist", "Publish"]

    def test_a_joiner_below_raises_nothing(self) -> None:
        stage = Stage().leads(A)
        ballot = stage.view.ballot
        assert stage.joins(B, promised=LOW).view.ballot == ballot
        assert not stage.did(Persist)


class TestRule12Meet:
    """Coordinators look for one another; the smaller group joins the larger."""

    def test_every_known_stranger_is_probed_every_second(self) -> None:
        stage = Stage(FIRST).leads(A).hinted(D)
        start = stage.now
        assert stage.keeps_members(start + 5.5, A).receivers(Probe).count(D) in (5, 6)
        assert A not in stage.receivers(Probe)

    def test_lost_members_too(self) -> None:
        stage = Stage(FIRST).leads(A).loses(A)
        assert A in stage.ticks_until(stage.now + 1.1).receivers(Probe)

    def test_and_addresses_without_an_id(self) -> None:
        stage = Stage().leads()
        stage.note(stage.node.hint(stage.now, Contact((Address("x:1"),))))
        assert stage.reached(Probe) == ["x:1"]
        assert len(stage.ticks_until(stage.now + 3.1).reached(Probe)) == 3

    def test_at_most_sixty_four_a_second_each_in_turn(self) -> None:
        strangers = tuple(contact(NodeId(f"n{index:03d}")) for index in range(150))
        stage = Stage(contacts=strangers).ticks_until(0.4 + 150 * TIMING.step + 2.0)
        stage.leads() if stage.role != "lead" else None
        start = stage.now
        first = stage.ticks_until(start + 1.0).receivers(Probe)
        assert len(first) <= TIMING.probe_burst
        later = stage.ticks_until(start + 3.0).receivers(Probe)
        assert len(set(first) | set(later)) == 150

    def test_those_unheard_for_an_hour_at_a_slow_pace_for_ever(self) -> None:
        stage = Stage(contacts=(contact(D),)).ticks_until(5.0)
        assert stage.role == "lead"
        stage.ticks_until(TIMING.idle_after + 60.0)
        assert stage.ticks_until(stage.now + 100.0).receivers(Probe).count(D) == 10

    def test_a_new_hint_at_once(self) -> None:
        assert Stage().leads().hinted(D).receivers(Probe) == [D]

    def test_a_follower_answers_who_leads_it_and_that_one_is_probed(self) -> None:
        assert Stage().follows().hears(B, probe(HIGH, 1, 0)).sent(Follows, B) == [Follows(Ballot(100, A), contact(A))]
        assert Stage().leads().hears(B, Follows(HIGH, contact(C))).receivers(Probe) == [C]

    def test_the_lower_ballot_answers_and_lets_the_other_judge(self) -> None:
        stage = Stage().leads(A).hears(E, probe(HIGH, 9, 99.0))
        assert stage.receivers(Probe) == [E]
        assert not stage.receivers(Join)

    @pytest.mark.parametrize(
        ("size", "reign_s", "yields"),
        [(1, 999.0, False), (2, 0.0, False), (2, 1.9, False), (2, 99.0, True), (3, 0.0, True)],
    )
    def test_the_higher_ballot_judges(self, size: int, reign_s: float, yields: bool) -> None:
        stage = Stage().leads(A)
        stage.keeps_members(stage.now + 1.0, A)
        stage.hears(E, probe(LOW, size, reign_s))
        assert stage.receivers(Join) == ([E] if yields else [])
        assert stage.receivers(Come) == ([] if yields else [E])

    def test_who_is_called_by_a_higher_ballot_comes_and_not_else(self) -> None:
        assert Stage().leads(A).hears(E, Come(HIGH)).receivers(Join) == [E]
        assert not Stage().leads(A).hears(E, Come(LOW)).receivers(Join)

    def yielding(self) -> Stage:
        stage = Stage(FIRST).leads(A, B).hears(E, Come(HIGH))
        (join,) = stage.sent(Join, E)
        assert join.leads
        return stage

    def test_one_yield_at_a_time(self) -> None:
        assert not self.yielding().hears(D, Come(Ballot(10**13, D))).receivers(Join)

    def test_it_leads_until_it_is_welcomed_and_then_sends_its_members_on(self) -> None:
        stage = self.yielding()
        assert stage.is_beaten(A, seq=3).said, "still acknowledged"
        old = stage.view.ballot
        welcome = Welcome(stage.last(Join).uplink, stage.update(E, HIGH))
        stage.hears(E, welcome)
        assert stage.role == "follow"
        assert stage.view.coordinator == E
        assert stage.sent(Moved, A) == stage.sent(Moved, B) == [Moved(old, contact(E))]
        assert stage.order()[0] == "Persist"

    def test_a_welcome_below_its_promise_does_not_count(self) -> None:
        stage = self.yielding()
        stage.hears(E, Welcome(stage.last(Join).uplink, stage.update(E, LOW)))
        assert stage.role == "lead"

    def test_it_gives_up_and_leads_on(self) -> None:
        stage = self.yielding()
        stage.keeps_members(stage.now + TIMING.yield_limit + 0.1, A, B)
        assert stage.role == "lead"
        stage.keeps_members(stage.now + TIMING.probe, A, B)
        assert stage.hears(E, Come(HIGH)).receivers(Join) == [E]

    @pytest.mark.parametrize("end", ["refused", "lost", "nolead"])
    def test_it_gives_up_when_the_other_is_no_coordinator(self, end: str) -> None:
        stage = self.yielding()
        match end:
            case "refused":
                stage.is_refused_by(E)
            case "lost":
                stage.loses(E)
            case _:
                stage.hears(E, NoLead(stage.last(Join).uplink))
        stage.keeps_members(stage.now + TIMING.probe, A, B)
        assert stage.hears(D, Come(HIGH)).receivers(Join) == [D]

    def test_while_it_yields_it_takes_in_members_but_no_coordinators(self) -> None:
        stage = self.yielding()
        assert not stage.joins(D, leads=True).sent(Welcome)
        assert stage.joins(C).sent(Welcome, C)

    def test_a_member_that_is_sent_on_joins_there(self) -> None:
        stage = Stage().follows().hears(A, Moved(Ballot(100, A), contact(E)))
        assert stage.receivers(Join) == [E]

    def test_but_not_by_a_stranger_or_below_its_promise(self) -> None:
        stage = Stage().follows().hears(B, Moved(Ballot(10**9, B), contact(E)))
        assert stage.hears(A, Moved(Ballot(99, A), contact(E))).role == "follow"


class TestGoodbye:
    """Who leaves says so, and nobody waits for silence."""

    def test_a_coordinator_tells_its_members(self) -> None:
        stage = Stage(FIRST).leads(A, B)
        stage.note(stage.node.leave(stage.now))
        assert stage.receivers(Bye) == [A, B]

    def test_a_member_tells_its_coordinator(self) -> None:
        stage = Stage().follows()
        stage.note(stage.node.leave(stage.now))
        assert stage.receivers(Bye) == [A]

    def test_afterwards_it_is_deaf_and_mute(self) -> None:
        stage = Stage().follows()
        stage.note(stage.node.leave(stage.now))
        assert stage.role == "gone"
        assert stage.node.deadline == float("inf")
        assert not stage.hears(A, Hello((), (0, 0, 0, A))).said
        assert not stage.sleeps_until(100.0).said

    def test_a_member_that_left_is_down_at_once(self) -> None:
        stage = Stage().leads(A)
        stage.ticks_until(stage.now + 0.5).hears(A, Bye())
        assert stage.published()[-1].members[A].state == "down"

    def test_an_earlier_runs_goodbye_does_not_count(self) -> None:
        stage = Stage().leads(A).loses(A).joins(A, run=2).hears(A, Bye(), run=1)
        assert stage.view.members[A].state == "up"

    def test_a_coordinator_that_left_is_replaced_at_once(self) -> None:
        assert Stage().follows(A, None, member(B, 10), own_joined=2).hears(A, Bye()).sent(Pre)


class TestTwins:
    """The same id twice: the younger session hears of it, and quits when it is no restart."""

    def test_a_join_beside_a_live_session_is_refused_and_the_younger_told(self) -> None:
        stage = Stage().leads(A).joins(A, run=2)
        assert stage.did(Send) == [Send(A, Taken(session(A, 1)), session(A, 2))]
        assert stage.view.members[A].session == session(A, 1)

    def test_also_when_the_younger_came_first(self) -> None:
        stage = Stage().leads().joins(A, run=2).joins(A, run=1)
        assert stage.did(Send) == [Send(A, Taken(session(A, 1)), session(A, 2))]

    def test_a_restart_is_taken_in_when_the_old_session_is_silent_or_closed(self) -> None:
        stage = Stage().leads(A).loses(A).joins(A, run=2)
        assert stage.sent(Welcome, A)
        stage = Stage().leads(A)
        stage.ticks_until(stage.now + TIMING.silence(2) + 0.1).joins(A, run=2)
        assert stage.sent(Welcome, A)

    def test_the_younger_quits_when_it_goes_on(self) -> None:
        stage = Stage(run=2)
        while stage.now < TIMING.duplicate:
            assert not stage.hears(A, Taken(session(ME, 1))).quits()
            stage.ticks_until(stage.now + 0.25)
        (end,) = stage.hears(A, Taken(session(ME, 1))).quits()
        assert end.twin
        assert stage.role == "gone"

    def test_one_that_was_told_long_ago_does_not(self) -> None:
        stage = Stage(run=2).hears(A, Taken(session(ME, 1))).ticks_until(60.0)
        assert not stage.hears(A, Taken(session(ME, 1))).quits()

    def test_the_elder_does_not(self) -> None:
        stage = Stage(run=1)
        for _ in range(40):
            stage.hears(A, Taken(session(ME, 2))).ticks_until(stage.now + 0.25)
        assert stage.role != "gone"

    def test_of_two_that_meet_the_younger_quits(self) -> None:
        hello = Hello((), (0, 0, 0, ME))
        assert Stage(run=2).hears(ME, hello, run=1).quits()
        stage = Stage(run=1).hears(ME, hello, run=2)
        assert stage.did(Send) == [Send(ME, Taken(session(ME, 1)), session(ME, 2))]

    def test_its_own_words_are_ignored(self) -> None:
        assert not Stage().ticks_until(0.1).hears(ME, Hello((), (0, 0, 0, ME))).said

    def test_a_record_of_the_own_id_at_a_foreign_address_is_looked_at(self) -> None:
        stage = Stage().ticks_until(0.1)
        assert not stage.note(stage.node.hint(0.1, contact(ME))).said
        assert stage.note(stage.node.hint(0.1, Contact((Address("far:1"),), ME))).reached(Hello) == ["far:1"]


class TestRemoval:
    """A member can be forgotten; one that has been down for a day is."""

    def test_a_removed_member_is_told_and_leaves_view_and_book(self) -> None:
        stage = Stage(FIRST).leads(A, B)
        stage.ticks_until(stage.now + 0.5)
        stage.note(stage.node.remove(stage.now, A))
        assert stage.sent(Removed, A) == [Removed(stage.view.ballot)]
        assert A not in stage.view.members
        assert stage.sent(Update, B)[0].removed == (A,)
        assert [contact for effect in stage.did(Remember) for contact in effect.contacts] == [Contact((), A)]

    def test_it_quits(self) -> None:
        (end,) = Stage().follows().hears(A, Removed(Ballot(100, A))).quits()
        assert not end.twin

    @pytest.mark.parametrize("order", [(A, Ballot(99, A)), (B, Ballot(10**9, B))])
    def test_but_not_by_an_order_below_its_promise_or_of_a_stranger(self, order: tuple[NodeId, Ballot]) -> None:
        assert not Stage().follows().hears(order[0], Removed(order[1])).quits()

    def test_one_that_was_down_for_a_day_is_forgotten(self) -> None:
        stage = Stage(FIRST).leads(A).loses(A)
        stage.ticks_until(stage.now + TIMING.remove_down - 60.0)
        assert stage.view.members[A].state == "down"
        stage.ticks_until(stage.now + 200.0)
        assert A not in stage.view.members

    def test_the_wall_clock_may_be_set(self) -> None:
        stage = Stage(FIRST).leads(A)
        stage.node.set_wall(stage.now, WALL + 5000.0)
        assert stage.loses(A).view.members[A].down_since == pytest.approx(WALL + 5000.0)


class TestPolicy:
    """One document, the highest of all that meet, on every disk."""

    high = Policy(Ballot(10**9, D), 4, {"who": "D"})

    def policies(self, stage: Stage) -> list[Policy]:
        return [effect.policy for effect in stage.did(Persist)]

    def test_a_coordinator_sets_it_persists_it_and_sends_it(self) -> None:
        stage = Stage().leads(A)
        stage.ticks_until(stage.now + 0.5)
        stage.note(stage.node.set_policy(stage.now, {"x": 1}))
        (policy,) = self.policies(stage)
        assert policy == Policy(stage.view.ballot, 1, {"x": 1})
        assert stage.sent(Update, A)[0].policy == policy
        assert stage.order()[0] == "Persist"

    def test_a_member_persists_what_it_is_sent(self) -> None:
        stage = Stage().follows()
        policy = Policy(Ballot(100, A), 1, {"x": 1})
        stamp = (policy.ballot, policy.version)
        stage.hears(A, Update(Ballot(100, A), 2, (Ballot(100, A), 1), policy_stamp=stamp, policy=policy))
        assert self.policies(stage) == [policy]
        assert stage.view.policy == policy

    def test_a_joiner_with_a_higher_one_brings_it(self) -> None:
        stage = Stage(policy=self.high).follows()
        assert stage.last(Beat).policy == self.high
        assert stage.view.policy == self.high

    def test_until_the_coordinator_has_it(self) -> None:
        stage = Stage(policy=self.high).follows()
        assert stage.ticks_until(0.25).sent(Beat)[0].policy == self.high
        stamp = (self.high.ballot, self.high.version)
        stage.acks().hears(A, Update(Ballot(100, A), 2, (Ballot(100, A), 1), policy_stamp=stamp, policy=self.high))
        assert stage.ticks_until(0.5).sent(Beat)[0].policy is None

    def test_a_coordinator_adopts_a_higher_one_and_keeps_its_own_from_a_lower(self) -> None:
        stage = Stage().leads(A)
        stage.ticks_until(stage.now + 0.5)
        stage.hears(A, Beat(Uplink(1), 1, (NO_BALLOT, 0), policy=self.high))
        assert self.policies(stage) == [self.high]
        assert stage.published()[-1].policy == self.high
        lower = replace(self.high, version=3)
        assert not stage.hears(A, Beat(Uplink(1), 2, (NO_BALLOT, 0), policy=lower)).did(Persist)

    def test_it_survives_a_restart(self) -> None:
        stage = Stage(policy=self.high).ticks_until(0.4)
        assert stage.view.policy == self.high
        assert all(effect.policy == self.high for effect in stage.did(Persist))


class TestEligibility:
    """Who may not lead does not stay coordinator, if there is anybody else."""

    def test_it_hands_over(self) -> None:
        stage = Stage().leads(A)
        stage.note(stage.node.describe(stage.now, status(ME, eligible=False)))
        assert stage.receivers(Bye) == [A]
        assert stage.role == "seek"

    def test_but_not_to_nobody(self) -> None:
        stage = Stage().leads()
        stage.note(stage.node.describe(stage.now, status(ME, eligible=False)))
        assert stage.role == "lead"

    def test_one_that_drains_is_shown_so_and_comes_last(self) -> None:
        stage = Stage().follows(A, None, replace(member(B, 0, tier=2), state="draining"), own_joined=5)
        assert stage.loses(A).sent(Pre), "B would have come first"
        stage = Stage().leads()
        stage.note(stage.node.describe(stage.now, replace(status(ME), state="draining")))
        assert stage.view.members[ME].state == "draining"


def test_a_node_that_was_never_led_holds_a_view_of_itself() -> None:
    stage = Stage()
    assert stage.view == View(NO_BALLOT, 0, None, stage.view.members, Policy())
    assert set(stage.view.members) == {ME}


def test_what_changes_while_nobody_leads_is_shown_here() -> None:
    stage = Stage()
    changed = replace(status(ME), name="other")
    (view,) = stage.note(stage.node.describe(0.0, changed)).published()
    assert view.members[ME].status == changed
