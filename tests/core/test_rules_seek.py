"""Rules 1 to 3 and 5: disk, terms, how a node without a coordinator looks for one, and what a loss means."""

from __future__ import annotations

import pytest
from tests.core.stage import ME, A, B, C, D, E, Stage, address, contact, member, session

from tiermesh.core.constants import TIMING
from tiermesh.core.context import next_term
from tiermesh.core.messages import Ack, Beat, Claim, Deny, Follows, Grant, Hello, Join, Lead, Pre, Probe, Welcome, Yes
from tiermesh.types import NO_BALLOT, Address, Ballot, Contact, NodeId


class TestRule1Disk:
    """What was promised is on disk before anybody hears of it, and holds after a restart."""

    def test_a_grant_follows_its_persist(self) -> None:
        stage = Stage().hears(A, Claim(Ballot(5, A)))
        assert stage.order() == ["Persist", "Grant"]
        assert stage.persisted() == [Ballot(5, A)]

    def test_a_claim_follows_its_persist(self) -> None:
        stage = Stage().hinted(A, B).ticks_until(0.4)
        assert stage.role == "seek", "two come first"
        stage = Stage(NodeId("0")).campaigns(A)
        assert stage.order() == ["Persist", "Claim"]

    def test_a_followed_ballot_is_persisted_before_it_is_shown_or_said(self) -> None:
        stage = Stage()
        stage.hears(A, Follows(NO_BALLOT, contact(A)))
        stage.hears(A, Welcome(stage.sent(Join)[0].uplink, stage.update()))
        assert stage.order()[:3] == ["Persist", "Publish", "Beat"]
        assert stage.persisted() == [Ballot(100, A)]

    def test_a_lone_coordinator_persists_before_it_shows_itself(self) -> None:
        stage = Stage().ticks_until(0.4)
        assert stage.role == "lead"
        assert stage.order()[:2] == ["Persist", "Publish"]

    def test_a_grant_binds_after_a_restart(self) -> None:
        stage = Stage(promised=Ballot(5, A))
        assert stage.hears(B, Claim(Ballot(5, B))).sent(Deny, B) == [Deny(Ballot(5, B), 5)]
        assert stage.hears(A, Claim(Ballot(5, A))).sent(Grant, A) == [Grant(Ballot(5, A))]

    def test_a_restarted_node_claims_above_what_it_promised(self) -> None:
        stage = Stage(promised=Ballot(5, A)).ticks_until(0.4)
        assert stage.node.promised.term > 5


class TestRule2Terms:
    """Terms step by a hash."""

    def test_two_nodes_step_to_different_terms(self) -> None:
        terms = {next_term(7, NodeId(str(index))) for index in range(500)}
        assert len(terms) == 500
        assert min(terms) > 7

    def test_steps_have_at_least_16_bits(self) -> None:
        steps = [next_term(0, NodeId(str(index))) for index in range(500)]
        assert max(steps) - min(steps) > 2**16

    def test_a_node_always_takes_the_same_step(self) -> None:
        assert next_term(7, A) == next_term(7, A)


class TestRule3Seek:
    """Boot: listen for a window, then wait for the own turn; ask around who leads."""

    def test_alone_it_leads_after_the_window(self) -> None:
        stage = Stage().ticks_until(TIMING.window - 0.001)
        assert stage.role == "seek"
        assert stage.ticks_until(TIMING.window).role == "lead"

    @pytest.mark.parametrize(("better", "wait_s"), [((), 0.4), ((A,), 0.65), ((A, B, C), 1.15)])
    def test_it_waits_a_step_for_each_that_comes_before(self, better: tuple[NodeId, ...], wait_s: float) -> None:
        stage = Stage().hinted(*better, NodeId("z"))
        assert not stage.ticks_until(wait_s - 0.001).sent(Pre)
        assert stage.ticks_until(wait_s).sent(Pre)

    def test_a_higher_tier_and_eligibility_come_before_the_id(self) -> None:
        stage = Stage(tier=2).hinted(A, B)
        stage.hears(A, Hello((address(A),), (0, -2, 2**31, A)))
        stage.hears(B, Hello((address(B),), (1, -3, 2**31, B)))
        assert stage.ticks_until(0.4).sent(Pre), "one of a lower tier and one that may not lead come after"

    def test_hello_goes_to_a_new_hint_at_once(self) -> None:
        stage = Stage().hinted(A)
        assert stage.receivers(Hello) == [A]

    def test_no_more_than_six_hellos_in_a_quarter_of_a_second(self) -> None:
        nodes = [NodeId(f"n{index}") for index in range(20)]
        stage = Stage(contacts=tuple(map(contact, nodes)))
        assert len(stage.hinted(*nodes).receivers(Hello)) == 6
        assert len(stage.ticks_until(0.249).receivers(Hello)) <= 6
        assert len(stage.ticks_until(0.3).receivers(Hello)) <= 6

    def test_saved_contacts_are_asked_at_boot_at_once(self) -> None:
        assert Stage(contacts=(contact(A),)).ticks_until(0.0).receivers(Hello) == [A]

    def test_an_address_without_an_id_is_asked_too_until_it_is_known(self) -> None:
        stage = Stage()
        stage.note(stage.node.hint(0.0, Contact((Address("x:1"),))))
        assert stage.reached(Hello) == ["x:1"]
        stage.note(stage.node.identified(0.1, Address("x:1"), A))
        assert stage.node.addresses_of(A) == ("x:1",)
        assert stage.ticks_until(0.3).receivers(Hello) == [A]

    def test_its_own_address_is_forgotten(self) -> None:
        stage = Stage()
        stage.note(stage.node.hint(0.0, Contact((Address("x:1"),))))
        stage.note(stage.node.identified(0.0, Address("x:1"), ME))
        stage.note(stage.node.hint(0.1, Contact((Address("x:1"),))))
        assert not stage.ticks_until(0.4).reached(Hello)

    def test_it_joins_whom_others_follow_saying_what_it_promised(self) -> None:
        stage = Stage(promised=Ballot(7, B)).hears(C, Follows(Ballot(5, A), contact(A)))
        (join,) = stage.sent(Join, A)
        assert join.promised == Ballot(7, B)
        assert stage.node.addresses_of(A) == (address(A),)

    @pytest.mark.parametrize("word", [Probe(Ballot(5, A), 2, 1.0, (address(A),)), Lead(Ballot(5, A))])
    def test_it_joins_a_coordinator_that_makes_itself_known(self, word: Probe | Lead) -> None:
        assert Stage().hears(A, word).receivers(Join) == [A]

    def test_it_ignores_a_winner_below_its_promise(self) -> None:
        assert Stage(promised=Ballot(9, B)).hears(A, Lead(Ballot(5, A))).role == "seek"

    def test_it_does_not_obey_a_welcome_below_its_promise(self) -> None:
        stage = Stage(promised=Ballot(900, B)).hears(A, Follows(NO_BALLOT, contact(A)))
        uplink = stage.sent(Join)[0].uplink
        assert stage.hears(A, Welcome(uplink, stage.update(A, Ballot(100, A)))).role == "join"
        assert stage.hears(A, Welcome(uplink, stage.update(A, Ballot(901, A)))).role == "follow"

    def test_it_answers_others_who_seek_but_not_answers(self) -> None:
        stage = Stage()
        assert stage.hears(A, Hello((address(A),), (0, -2, 5, A))).sent(Hello, A)[0].answer
        assert not stage.hears(A, Hello((address(A),), (0, -2, 5, A), answer=True)).said[1:]

    def test_one_that_is_not_eligible_never_campaigns_but_grants_and_follows(self) -> None:
        stage = Stage(eligible=False).ticks_until(300.0)
        assert stage.role == "seek"
        assert not stage.persisted()
        assert stage.hears(A, Claim(Ballot(5, A))).sent(Grant)
        assert stage.hears(A, Lead(Ballot(5, A))).receivers(Join) == [A]

    def test_it_campaigns_once_it_becomes_eligible(self) -> None:
        stage = Stage(eligible=False).ticks_until(5.0)
        stage.note(stage.node.describe(5.0, Stage().view.members[ME].status))
        assert stage.ticks_until(6.0).role == "lead"


class TestRule5Loss:
    """The end of the uplink, and what others say about it."""

    @pytest.mark.parametrize(("rank", "others"), [(0, ()), (1, (member(B, 2),)), (2, (member(B, 2), member(C, 3)))])
    def test_by_end_of_file_it_campaigns_after_rank_steps(self, rank: int, others: tuple[object, ...]) -> None:
        stage = Stage().follows(A, None, *others, member(D, 20))  # type: ignore[arg-type]
        stage.now = 1.0
        stage.ticks_until(1.0)
        stage.loses(A)
        early = stage.sent(Pre) if rank == 0 else stage.ticks_until(1.0 + rank * 0.25 - 0.001).sent(Pre)
        assert bool(early) == (rank == 0)
        if rank:
            assert stage.ticks_until(1.0 + rank * 0.25).sent(Pre)

    def test_by_silence_it_campaigns_after_five_beats(self) -> None:
        stage = Stage().follows()
        assert stage.ticks_until(TIMING.silence(2) - 0.001).role == "follow"
        assert stage.ticks_until(TIMING.silence(2) + 0.001).role in ("prevote", "lead")

    def test_the_view_stays_and_says_that_nobody_leads(self) -> None:
        stage = Stage().follows(A, None, member(D, 20)).loses(A)
        assert stage.published()[0].coordinator is None
        assert set(stage.view.members) == {A, D, ME}

    def test_rank_is_tier_then_membership_then_id(self) -> None:
        others = (member(B, 10, tier=2), member(C, 2), member(D, 1, tier=0), member(E, 9))
        stage = Stage().follows(A, None, *others, own_joined=9)
        stage.loses(A)
        assert not stage.ticks_until(stage.now + 3 * 0.25 - 0.001).sent(Pre)
        assert stage.ticks_until(3 * 0.25).sent(Pre), "B by tier, C by membership, E by id"

    def test_others_word_for_the_lost_one_is_ignored_but_not_its_own(self) -> None:
        stage = Stage().follows(A, None, member(B, 2), member(C, 3)).loses(A)
        assert stage.hears(B, Follows(Ballot(100, A), contact(A))).role == "seek"
        assert stage.hears(A, Follows(Ballot(100, A), contact(A))).role == "join"

    def test_an_old_runs_end_of_file_does_not_count(self) -> None:
        stage = Stage().follows()
        stage.hears(A, Ack(stage.last(Beat).uplink, 99, stage.view.ballot), run=2)
        stage.note(stage.node.lost(stage.now, A, session(A, 1)))
        assert stage.role == "follow"
        stage.note(stage.node.lost(stage.now, A, session(A, 2)))
        assert stage.role != "follow"

    def test_a_candidate_that_dies_before_it_has_won_is_not_waited_for(self) -> None:
        stage = Stage().follows(A, None, member(B, 2), member(C, 30)).loses(A)
        stage.hears(B, Claim(Ballot(500, B)))
        assert stage.sent(Grant)
        assert stage.loses(B).sent(Pre), "at once, for C comes later"

    def test_a_new_candidate_is_answered_although_the_lost_one_was_granted_just_now(self) -> None:
        stage = Stage(promised=Ballot(1, B)).hears(A, Claim(Ballot(100, A)))
        stage.follows(A, Ballot(100, A), member(B, 2)).loses(A)
        assert stage.hears(B, Pre(1, (0, -2, 2, B))).sent(Yes, B)
