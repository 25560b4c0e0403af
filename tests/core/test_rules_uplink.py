"""Rules 4, 13, 14 and 15: the uplink, hints, time that jumps, and how views travel."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.core.stage import ME, A, B, C, D, Stage, address, contact, member, session, status

from tiermesh.core.constants import TIMING
from tiermesh.core.effects import Announce
from tiermesh.core.messages import Ack, Beat, Drop, Hello, Join, NoLead, Probe, Update, Uplink, Welcome
from tiermesh.types import NO_BALLOT, Ballot, Load, NodeId

FIRST = NodeId("0")


class TestRule4Uplink:
    """Beats go up, acknowledgements come down; each side drops the other after silence."""

    def test_a_member_beats_every_quarter_of_a_second(self) -> None:
        stage = Stage().follows().ticks_until(1.0)
        assert len(stage.sent(Beat, A)) == 4

    def test_a_round_trip_keeps_the_uplink(self) -> None:
        stage = Stage().follows()
        for tenth in range(1, 40):
            stage.ticks_until(tenth / 10).acks()
        assert stage.role == "follow"

    def test_what_comes_down_without_a_round_trip_does_not(self) -> None:
        stage = Stage().follows()
        version = 2
        while stage.now < TIMING.silence(2) + 0.1:
            stage.hears(A, stage.update(version=version))
            stage.hears(A, Ack(stage.last(Beat).uplink, 1, stage.view.ballot))
            stage.ticks_until(stage.now + 0.1)
            version += 1
        assert stage.role != "follow", "views came and an old beat was acknowledged, but no new one"

    def test_an_acknowledgement_below_the_promise_is_not_obeyed(self) -> None:
        stage = Stage().follows()
        while stage.role == "follow" and stage.now < 3.0:
            stage.ticks_until(stage.now + 0.1).acks(ballot=Ballot(99, A))
        assert stage.role != "follow"

    def test_a_coordinator_acknowledges_each_beat(self) -> None:
        stage = Stage().leads(A)
        assert stage.is_beaten(A, seq=7).sent(Ack, A) == [Ack(Uplink(1), 7, stage.view.ballot)]

    def test_a_coordinator_marks_a_silent_member_down(self) -> None:
        stage = Stage(FIRST).leads(A, B)
        stage.keeps_members(stage.now + TIMING.silence(3) + 0.3, A)
        assert stage.view.members[A].state == "up"
        assert stage.view.members[B].state == "down"
        assert stage.view.members[B].down_since == pytest.approx(stage.node.wall(stage.now), abs=1.5)

    def test_and_one_whose_connection_ended_at_once(self) -> None:
        stage = Stage().leads(A)
        stage.keeps_members(stage.now + 1.0, A).loses(A)
        assert stage.published()[-1].members[A].state == "down"

    @pytest.mark.parametrize(("uplink", "run"), [(2, 1), (1, 2)])
    def test_a_beat_on_a_wrong_uplink_or_of_a_wrong_session_is_dropped(self, uplink: int, run: int) -> None:
        stage = Stage().leads(A)
        assert stage.is_beaten(A, uplink=uplink, run=run).sent(Drop, A) == [Drop(Uplink(uplink))]

    def test_a_beat_of_an_earlier_uplink_is_ignored(self) -> None:
        stage = Stage().leads(A).joins(A, uplink=2)
        assert not stage.is_beaten(A, uplink=1).sent(Drop)

    def test_who_is_dropped_joins_again(self) -> None:
        stage = Stage().follows()
        assert stage.hears(A, Drop(stage.last(Beat).uplink)).receivers(Join) == [A]

    def test_a_drop_of_an_earlier_uplink_is_ignored(self) -> None:
        assert Stage().follows().hears(A, Drop(Uplink(0))).role == "follow"

    def test_who_hears_that_its_coordinator_does_not_lead_has_lost_it(self) -> None:
        stage = Stage().follows(A, None, member(B, 2), member(C, 3))
        assert stage.hears(A, NoLead(stage.last(Beat).uplink)).role == "seek"

    def test_or_goes_where_it_is_sent(self) -> None:
        stage = Stage().follows(A, None, member(B, 2))
        assert stage.hears(A, NoLead(stage.last(Beat).uplink, contact(B))).receivers(Join) == [B]

    def test_a_coordinator_that_asks_who_leads_is_beaten_to_find_out(self) -> None:
        assert Stage().follows().hears(A, Hello((address(A),), (0, -2, 1, A))).receivers(Beat) == [A]

    def test_the_status_travels_at_once_and_until_it_is_acknowledged(self) -> None:
        stage = Stage().follows()
        stage.note(stage.node.describe(stage.now, replace(status(ME), load=Load(active=3))))
        first = stage.sent(Beat)[0].status
        assert first is not None
        assert first.load == Load(active=3)
        stage.ticks_until(0.25)
        assert stage.sent(Beat)[0].status == first, "the first may be lost"
        stage.acks().ticks_until(0.5)
        assert stage.sent(Beat)[0].status is None

    def test_a_status_that_did_not_change_does_not_travel(self) -> None:
        stage = Stage().follows()
        assert not stage.note(stage.node.describe(stage.now, status(ME))).said

    def test_the_round_trip_is_measured_and_told_when_it_matters(self) -> None:
        stage = Stage().follows()
        told = []
        for trip_s in [0.010] * 60 + [0.011] * 60:
            stage.ticks_until(stage.node.deadline)
            told += [beat.status.latency_ms for beat in stage.sent(Beat) if beat.status is not None]
            stage.now += trip_s
            stage.acks()
        assert stage.node.rtt_s == pytest.approx(0.011)
        assert told == [0.0, pytest.approx(10.0)], "a millisecond more is no news"

    @pytest.mark.parametrize(("n", "beat_s"), [(1, 0.25), (64, 0.25), (128, 0.5), (1000, 2.0)])
    def test_large_meshes_beat_slower(self, n: int, beat_s: float) -> None:
        assert TIMING.beat(n) == beat_s
        assert TIMING.silence(n) == 5 * beat_s


class TestRule13Hints:
    """Members do not probe; the coordinator does, and makes itself known."""

    def test_a_hint_travels_with_the_next_beat_until_it_is_acknowledged(self) -> None:
        stage = Stage().follows().hinted(D)
        assert not stage.receivers(Probe)
        assert stage.ticks_until(0.25).sent(Beat)[0].hints == (contact(D),)
        assert stage.ticks_until(0.5).sent(Beat)[0].hints == (contact(D),)
        assert stage.acks().ticks_until(0.75).sent(Beat)[0].hints == ()

    def test_members_of_the_view_are_no_news(self) -> None:
        stage = Stage().follows(A, None, member(B, 2)).hinted(B)
        assert stage.ticks_until(0.25).sent(Beat)[0].hints == ()

    def test_a_new_member_tells_whom_it_knew_before(self) -> None:
        stage = Stage(contacts=(contact(D),)).follows()
        assert any(contact(D) in beat.hints for beat in [stage.last(Beat)])

    def test_a_coordinator_probes_what_a_member_hints(self) -> None:
        stage = Stage().leads(A)
        beat = Beat(Uplink(1), 1, (NO_BALLOT, 0), hints=(contact(D),))
        assert stage.hears(A, beat).receivers(Probe) == [D]

    def test_a_coordinator_announces_itself_every_five_seconds(self) -> None:
        stage = Stage().leads()
        stage.ticks_until(stage.now + 14.9)
        assert len(stage.did(Announce)) == 2
        assert not Stage().follows().ticks_until(1.0).did(Announce)


class TestRule14Time:
    """A node suspects nobody for time that it lost itself."""

    def test_one_that_slept_asks_its_old_coordinator_first(self) -> None:
        stage = Stage().follows(A, None, member(B, 0), member(C, 0)).sleeps_until(10.0)
        assert stage.role == "seek"
        assert stage.receivers(Hello)[0] == A
        assert stage.published()[0].coordinator is None

    def test_a_coordinator_that_slept_leads_no_more(self) -> None:
        stage = Stage().leads(A).sleeps_until(10.0)
        assert stage.role == "seek"

    def test_mail_found_on_waking_is_read_by_one_who_knows_that_it_slept(self) -> None:
        stage = Stage().leads(A)
        stage.now = 10.0
        assert stage.is_beaten(A).receivers(NoLead) == [A]

    def test_a_member_whose_loop_lagged_excuses_its_coordinator(self) -> None:
        stage = Stage().follows().ticks_until(1.0)
        stage.now = 2.2
        stage.note(stage.node.tick(2.2))
        assert stage.role == "follow", "silent for 2.2 s, of which 0.95 s were its own; there may be mail"
        assert stage.ticks_until(2.2 + TIMING.beat(2)).role != "follow"

    def test_a_coordinator_whose_loop_lagged_excuses_its_members(self) -> None:
        stage = Stage().leads(A).keeps_members(1.0, A)
        stage.sleeps_until(2.4)
        assert stage.view.members[A].state == "up"
        assert stage.ticks_until(4.0).view.members[A].state == "down"


class TestRule15Views:
    """Changes close together travel as one view, and as what changed."""

    def test_joins_within_the_gap_are_one_view(self) -> None:
        stage = Stage(FIRST).leads(A, B)
        stage.ticks_until(stage.now + 1.0)
        stage.keeps_members(stage.now + 0.01, A, B)
        stage.joins(C)
        stage.ticks_until(stage.now)
        stage.joins(D)
        assert stage.ticks_until(stage.now + TIMING.view_gap_least).receivers(Update).count(A) == 1

    def test_a_lone_change_travels_at_once(self) -> None:
        stage = Stage().leads(A)
        stage.ticks_until(stage.now + 0.5)
        stage.joins(B)
        assert stage.receivers(Update) == [A]

    def test_a_view_holds_what_changed_only(self) -> None:
        stage = Stage(FIRST).leads(A, B)
        stage.ticks_until(stage.now + 0.5).joins(C)
        (update,) = stage.sent(Update, A)
        assert [each.id for each in update.changed] == [C]
        assert update.base is not None

    def test_a_member_applies_what_changed(self) -> None:
        stage = Stage().follows(A, None, member(B, 2))
        stage.hears(A, Update(Ballot(100, A), 2, (Ballot(100, A), 1), (member(C, 3),), (B,)))
        assert set(stage.view.members) == {A, C, ME}
        assert stage.published() == [stage.view]

    def test_what_does_not_fit_is_answered_by_a_call_for_the_full_view(self) -> None:
        stage = Stage().follows()
        stage.hears(A, Update(Ballot(100, A), 9, (Ballot(100, A), 7), (member(C, 3),)))
        assert stage.sent(Beat)[0].behind
        assert C not in stage.view.members

    def test_and_the_coordinator_sends_it(self) -> None:
        stage = Stage().leads(A)
        stage.ticks_until(stage.now + 0.5)
        stage.hears(A, Beat(Uplink(1), 1, (NO_BALLOT, 0), behind=True))
        (update,) = stage.sent(Update, A)
        assert update.base is None
        assert {each.id for each in update.changed} == {A, ME}

    def test_an_update_that_got_lost_is_sent_again_after_a_beat(self) -> None:
        stage = Stage(FIRST).leads(A, B)
        held = (stage.view.ballot, stage.view.version)
        stage.ticks_until(stage.now + 0.5).joins(C)
        assert stage.receivers(Update).count(A) == 1
        stage.ticks_until(stage.now + TIMING.beat(4) + 0.01)
        assert stage.hears(A, Beat(Uplink(1), 5, held)).receivers(Update) == [A]

    def test_old_and_lower_views_are_not_obeyed(self) -> None:
        stage = Stage().follows()
        stage.hears(A, stage.update(version=5))
        stage.hears(A, stage.update(A, None, member(B, 2), version=3))
        stage.hears(A, stage.update(A, Ballot(99, A), member(B, 2), version=9))
        stage.hears(C, stage.update(C, Ballot(200, C), member(B, 2), version=9))
        assert B not in stage.view.members
        assert stage.view.version == 5

    def test_a_new_coordinator_goes_on_from_the_view_it_inherits(self) -> None:
        stage = Stage().follows(A, None, member(B, 10), own_joined=2).loses(A)
        stage.campaigns_again(B)
        stage.joins(B, holds=(Ballot(100, A), 1))
        (welcome,) = stage.sent(Welcome, B)
        assert welcome.update.base == (Ballot(100, A), 1)
        assert {each.id: each.state for each in welcome.update.changed}[A] == "down"
        assert B in {each.id for each in welcome.update.changed} | set(stage.view.members)

    def test_a_member_that_returns_is_numbered_anew_and_a_restart_shows_its_session(self) -> None:
        stage = Stage(FIRST).leads(A, B)
        before = stage.view.members[A].joined
        stage.loses(A).joins(A, run=2)
        after = stage.view.members[A]
        assert after.joined > max(before, stage.view.members[B].joined)
        assert after.session == session(A, 2)
        assert after.state == "up"
