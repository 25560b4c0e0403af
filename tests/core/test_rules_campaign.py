"""Rules 6 to 10: the pre-vote, its answers, the veto of the living, the claim, and the win."""

from __future__ import annotations

import pytest
from tests.core.stage import ME, A, B, C, D, Stage, address, contact, member

from tiermesh.core.constants import TIMING
from tiermesh.core.effects import Persist
from tiermesh.core.messages import (
    Ack,
    Beat,
    Busy,
    Claim,
    Deny,
    Follows,
    Grant,
    Hello,
    Join,
    Lead,
    Lives,
    NoLead,
    Pre,
    Uplink,
    Welcome,
    Yes,
)
from tiermesh.types import Address, Ballot, Contact, NodeId

FIRST = NodeId("0")
"""An id that comes before all others."""
WORSE = (0, 9, 2**31, NodeId("z"))
BETTER = (0, -9, 0, NodeId("z"))


def bereft(*others: NodeId, own_joined: int = 2) -> Stage:
    """It followed A with `others`, and has just lost A by end-of-file."""
    stage = Stage().follows(A, None, *(member(node, 10 + i) for i, node in enumerate(others)), own_joined=own_joined)
    stage.all.clear()
    return stage.loses(A)


def nonce(stage: Stage) -> int:
    return stage.sent(Pre)[0].nonce


class TestRule6PreVote:
    """Ask everybody, promise nothing."""

    def test_it_asks_the_view_and_all_other_known_and_persists_nothing(self) -> None:
        stage = Stage(contacts=(contact(D),)).follows(A, None, member(B, 10), own_joined=2)
        stage.note(stage.node.hint(0.0, Contact((Address("x:1"),))))
        stage.loses(A)
        assert set(stage.receivers(Pre)) == {A, B, D}
        assert stage.reached(Pre) == ["x:1"]
        assert not stage.did(Persist)

    def test_it_ends_when_the_view_has_answered_and_others_have_had_a_moment(self) -> None:
        stage = Stage(contacts=(contact(D),)).follows(A, None, member(B, 10), own_joined=2).loses(A)
        assert stage.hears(B, Yes(nonce(stage), 100)).role == "prevote"
        assert stage.ticks_until(stage.now + TIMING.also).role == "claim"

    def test_it_ends_at_once_when_all_have_answered(self) -> None:
        stage = bereft(B)
        assert stage.hears(B, Yes(nonce(stage), 100)).role == "claim"

    def test_the_lost_coordinator_is_asked_and_not_waited_for(self) -> None:
        stage = bereft(B)
        assert A in stage.receivers(Pre)
        assert stage.hears(B, Yes(nonce(stage), 100)).receivers(Claim) == [B]

    def test_a_refusal_is_an_answer(self) -> None:
        stage = bereft(B)
        assert stage.is_refused_by(B).role == "lead"

    def test_the_silent_are_asked_five_times_and_given_up_after_a_phase(self) -> None:
        stage = bereft(B)
        assert stage.ticks_until(TIMING.phase(3) - 0.001).receivers(Pre).count(B) == TIMING.resends - 1
        assert stage.ticks_until(TIMING.phase(3)).role == "lead"

    def test_those_lately_silent_are_not_waited_for_again(self) -> None:
        stage = bereft(B, C)
        first = nonce(stage)
        stage.hears(C, Yes(first, 100)).ticks_until(TIMING.phase(4))
        assert stage.role == "claim", "without B"
        stage.hears(C, Deny(Ballot(0, ME), 1)).hears(C, Deny(stage.node.promised, 10**9))
        assert stage.role == "seek"
        stage.ticks_until(stage.now + 0.5)
        assert stage.role == "prevote"
        stage.hears(C, Yes(stage.last(Pre).nonce, 100))
        assert stage.ticks_until(stage.now + TIMING.also).role == "claim"

    def test_without_a_view_those_hinted_or_heard_lately_must_answer(self) -> None:
        stage = Stage(FIRST, contacts=(contact(D),)).hinted(A)
        stage.hears(B, Hello((address(B),), (0, -2, 2**31, B))).ticks_until(0.4)
        assert stage.role == "prevote"
        stage.hears(A, Yes(nonce(stage), 0)).ticks_until(0.4 + 2 * TIMING.also)
        assert stage.role == "prevote", "B was heard; D is only in the book"

    def test_an_answer_to_another_question_counts_for_nothing(self) -> None:
        stage = bereft(B)
        assert stage.hears(B, Yes(nonce(stage) + 1, 100)).role == "prevote"


class TestRule7Answers:
    """What a candidate is told, by whom."""

    question = Pre(77, WORSE)

    def test_a_coordinator_lives(self) -> None:
        stage = Stage().leads()
        assert stage.hears(B, self.question).sent(Lives, B) == [Lives(77, stage.view.ballot, contact(ME))]

    def test_a_follower_beats_first_and_says_so_when_it_is_acknowledged(self) -> None:
        stage = Stage().follows().hears(B, self.question)
        assert stage.receivers(Beat) == [A]
        assert not stage.sent(Lives)
        assert stage.acks().sent(Lives, B) == [Lives(77, Ballot(100, A), contact(A))]

    def test_an_acknowledgement_of_an_earlier_beat_is_no_sign_of_life(self) -> None:
        stage = Stage().follows().ticks_until(0.25)
        earlier = stage.last(Beat)
        stage.hears(B, self.question)
        assert not stage.hears(A, Ack(earlier.uplink, earlier.seq, Ballot(100, A))).sent(Lives)

    def test_a_follower_whose_coordinator_stays_silent_says_yes(self) -> None:
        stage = Stage().follows().hears(B, self.question)
        assert not stage.ticks_until(TIMING.hold - 0.001).sent(Yes)
        assert stage.ticks_until(TIMING.hold).sent(Yes, B) == [Yes(77, 100)]

    def test_a_follower_that_loses_its_coordinator_meanwhile_says_yes_at_once(self) -> None:
        stage = Stage().follows(A, None, member(C, 2)).hears(B, self.question)
        assert stage.loses(A).sent(Yes, B) == [Yes(77, 100)]

    def test_one_that_is_joining_answers_when_it_knows(self) -> None:
        stage = Stage().hears(A, Follows(Ballot(100, A), contact(A)))
        (join,) = stage.sent(Join)
        assert not stage.hears(B, self.question).sent(Yes)
        assert stage.hears(A, Welcome(join.uplink, stage.update())).sent(Lives, B)

    def test_one_that_nobody_leads_says_yes(self) -> None:
        assert Stage(promised=Ballot(5, A)).hears(B, self.question).sent(Yes, B) == [Yes(77, 5)]

    def test_one_that_claims_is_busy(self) -> None:
        stage = bereft(B, C)
        stage.hears(B, Yes(nonce(stage), 1)).hears(C, Yes(stage.last(Pre).nonce, 1))
        assert stage.role == "claim"
        assert stage.hears(B, Pre(77, BETTER)).sent(Busy, B)

    def test_one_that_has_just_granted_another_is_busy_for_a_phase(self) -> None:
        stage = Stage().hears(A, Claim(Ballot(5, A)))
        assert stage.hears(B, self.question).sent(Busy, B)
        assert stage.hears(A, self.question).sent(Yes, A)
        stage.now = TIMING.phase(1) + 0.01
        assert stage.hears(B, self.question).sent(Yes, B)

    def test_of_two_that_ask_the_better_goes_on_and_the_worse_stands_down(self) -> None:
        stage = bereft(B)
        assert stage.hears(B, Pre(77, WORSE)).sent(Busy, B)
        assert stage.role == "prevote"
        assert stage.hears(B, Pre(77, BETTER)).sent(Yes, B)
        assert stage.role == "seek"

    def test_one_that_waits_for_its_turn_lets_the_better_one_go_first(self) -> None:
        stage = Stage().hinted(B, C).hears(B, Pre(77, BETTER))
        assert not stage.ticks_until(TIMING.phase(1) - 0.001).sent(Pre)

    def test_busy_ends_the_pre_vote_for_a_while(self) -> None:
        stage = bereft(B)
        assert stage.hears(B, Busy(nonce(stage))).role == "seek"
        assert not stage.ticks_until(TIMING.step - 0.001).sent(Pre)
        assert stage.ticks_until(2 * TIMING.step).sent(Pre)


class TestRule8Lives:
    """The living veto; those who can't be reached do not, in the end."""

    def test_the_asker_joins_that_coordinator_for_a_second(self) -> None:
        stage = bereft(B)
        stage.hears(B, Lives(nonce(stage), Ballot(100, A), contact(A)))
        assert stage.receivers(Join) == [A]
        assert stage.ticks_until(TIMING.join_limit - 0.001).role == "join"
        assert stage.ticks_until(TIMING.join_limit).role == "seek"
        assert stage.ticks_until(TIMING.join_limit + 0.5).sent(Pre), "and tries again later"

    def test_after_patience_a_members_word_abstains(self) -> None:
        stage = bereft(B)
        while stage.now <= TIMING.patience:
            assert stage.role == "prevote"
            stage.hears(B, Lives(stage.last(Pre).nonce, Ballot(100, A), contact(A)))
            assert stage.role == "join"
            stage.ticks_until(stage.now + TIMING.join_limit + 0.5)
        assert stage.hears(B, Lives(stage.last(Pre).nonce, Ballot(100, A), contact(A))).role == "lead"

    def test_the_coordinators_own_word_never_does(self) -> None:
        stage = bereft(B)
        stage.ticks_until(0.1)
        for _ in range(5):
            stage.hears(A, Lives(stage.last(Pre).nonce, Ballot(100, A), contact(A)))
            assert stage.role == "join"
            stage.ticks_until(stage.now + TIMING.join_limit + 0.5)
        assert stage.now > TIMING.patience

    def test_a_refused_join_is_tried_again_without_haste(self) -> None:
        stage = bereft(B)
        stage.hears(B, Lives(nonce(stage), Ballot(100, A), contact(A))).is_refused_by(A)
        assert stage.role == "prevote", "it is dead after all"
        stage.hears(B, Lives(stage.last(Pre).nonce, Ballot(100, A), contact(A))).is_refused_by(A)
        assert stage.role == "seek", "others can reach it and this node can't"

    def test_a_join_goes_where_it_is_sent_on_to_once(self) -> None:
        stage = Stage().hears(B, Follows(Ballot(5, A), contact(A)))
        (join,) = stage.sent(Join)
        stage.hears(A, NoLead(join.uplink, contact(C)))
        assert stage.receivers(Join) == [C]
        stage.hears(C, NoLead(stage.sent(Join)[0].uplink, contact(A)))
        assert stage.role == "seek"


class TestRule9Claim:
    """All who said yes must grant, in time; a term is granted once."""

    def claiming(self) -> Stage:
        stage = bereft(B, C)
        asked = nonce(stage)
        stage.hears(B, Yes(asked, 100)).hears(C, Yes(asked, 777))
        assert stage.receivers(Claim) == [B, C]
        return stage

    def test_the_term_is_above_the_highest_heard(self) -> None:
        assert self.claiming().node.promised.term > 777

    def test_all_must_grant(self) -> None:
        stage = self.claiming()
        ballot = stage.node.promised
        assert stage.hears(B, Grant(ballot)).role == "claim"
        assert stage.hears(C, Grant(ballot)).role == "lead"

    def test_a_grant_of_another_ballot_or_of_a_stranger_counts_for_nothing(self) -> None:
        stage = self.claiming()
        ballot = stage.node.promised
        stage.hears(B, Grant(ballot)).hears(C, Grant(Ballot(ballot.term - 1, ME))).hears(D, Grant(ballot))
        assert stage.role == "claim"

    def test_one_denial_fails_it(self) -> None:
        stage = self.claiming()
        assert stage.hears(B, Deny(stage.node.promised, 10**6)).role == "seek"

    def test_silence_fails_it(self) -> None:
        stage = self.claiming()
        stage.hears(B, Grant(stage.node.promised))
        assert stage.ticks_until(TIMING.phase(4)).role == "seek"

    def test_a_refused_connection_only_drops_that_voter(self) -> None:
        stage = self.claiming()
        stage.hears(B, Grant(stage.node.promised))
        assert stage.is_refused_by(C).role == "lead"

    def test_a_lost_connection_is_tried_again_first(self) -> None:
        stage = self.claiming()
        stage.hears(B, Grant(stage.node.promised))
        assert stage.loses(C).receivers(Claim) == [C]
        assert stage.role == "claim"

    def test_the_silent_are_asked_again(self) -> None:
        assert self.claiming().ticks_until(TIMING.phase(4) / TIMING.resends).receivers(Claim) == [B, C]

    def test_the_deadline_is_checked_on_receipt(self) -> None:
        stage = self.claiming()
        ballot = stage.node.promised
        stage.hears(B, Grant(ballot))
        stage.now = TIMING.phase(4) + 0.3  # frozen meanwhile: no tick came, the grant waited in the socket
        assert stage.hears(C, Grant(ballot)).role == "seek"

    def test_a_term_above_the_promise_is_granted(self) -> None:
        stage = Stage(promised=Ballot(5, B)).hears(A, Claim(Ballot(6, A)))
        assert stage.sent(Grant, A) == [Grant(Ballot(6, A))]

    def test_the_same_ballot_is_granted_again(self) -> None:
        stage = Stage().hears(A, Claim(Ballot(6, A))).hears(A, Claim(Ballot(6, A)))
        assert stage.sent(Grant, A) == [Grant(Ballot(6, A))]
        assert not stage.did(Persist)

    @pytest.mark.parametrize("rival", [Ballot(6, B), Ballot(5, C)])
    def test_terms_are_compared_not_ballots(self, rival: Ballot) -> None:
        stage = Stage(promised=Ballot(6, A)).hears(rival.node_id, Claim(rival))
        assert stage.sent(Deny) == [Deny(rival, 6)]
        assert not stage.did(Persist)

    def test_nobody_claims_for_another(self) -> None:
        assert not Stage().hears(A, Claim(Ballot(5, B))).did(Persist)

    def test_a_candidate_grants_a_higher_claim_and_stands_down(self) -> None:
        stage = self.claiming()
        assert stage.hears(B, Claim(Ballot(10**12, B))).sent(Grant, B)
        assert stage.role == "seek"

    def test_it_retries_after_a_step_for_each_before_it_and_jitter(self) -> None:
        stage = self.claiming()
        stage.hears(B, Deny(stage.node.promised, 10**6))
        assert not stage.ticks_until(TIMING.step - 0.001).sent(Pre)
        assert stage.ticks_until(2 * TIMING.step).sent(Pre)


class TestRule10Win:
    """The winner makes itself known; those who follow somebody alive do not care."""

    def test_lead_is_repeated_until_each_has_joined(self) -> None:
        stage = Stage(FIRST).campaigns(A, B)
        ballot = stage.node.promised
        stage.hears(A, Grant(ballot)).hears(B, Grant(ballot))
        assert stage.summoned_by() == [A, B]
        stage.joins(A)
        assert set(stage.ticks_until(stage.now + TIMING.phase(1)).summoned_by()) == {B}
        stage.joins(B)
        assert not stage.ticks_until(stage.now + TIMING.phase(1)).summoned_by()

    def test_who_does_not_join_in_time_is_down(self) -> None:
        stage = bereft(B)
        stage.hears(B, Yes(nonce(stage), 1)).hears(B, Grant(stage.node.promised))
        assert stage.view.members[B].state == "up"
        stage.ticks_until(stage.now + TIMING.silence(2) + TIMING.view_gap_least)
        assert stage.view.members[B].state == "down"

    def test_who_refused_and_who_was_lost_are_down_at_once(self) -> None:
        stage = bereft(B).is_refused_by(B)
        assert {node: each.state for node, each in stage.view.members.items()} == {A: "down", B: "down", ME: "up"}
        assert stage.view.members[A].down_since is not None

    def test_a_follower_with_a_live_uplink_ignores_a_strangers_lead(self) -> None:
        stage = Stage().follows().hears(B, Lead(Ballot(10**9, B)))
        assert stage.role == "follow"
        assert not stage.said

    def test_a_follower_without_doubt_denies_a_claim(self) -> None:
        stage = Stage().follows().hears(B, Claim(Ballot(10**9, B)))
        assert stage.sent(Deny, B)
        assert stage.role == "follow"

    def test_a_follower_in_doubt_grants_and_leaves(self) -> None:
        stage = Stage().follows().hears(B, Pre(77, WORSE)).ticks_until(TIMING.hold)
        assert stage.hears(B, Claim(Ballot(10**9, B))).sent(Grant, B)
        assert stage.role == "seek"

    def test_a_sign_of_life_ends_the_doubt(self) -> None:
        stage = Stage().follows().hears(B, Pre(77, WORSE)).ticks_until(TIMING.hold).acks()
        assert stage.hears(B, Claim(Ballot(10**9, B))).sent(Deny, B)

    def test_a_coordinator_denies(self) -> None:
        assert Stage().leads().hears(B, Claim(Ballot(10**9, B))).sent(Deny, B)

    def test_one_that_does_not_lead_says_who_does(self) -> None:
        stage = Stage().follows()
        assert stage.joins(B).sent(NoLead, B) == [NoLead(Uplink(1), contact(A))]
        assert Stage().joins(B).sent(NoLead, B) == [NoLead(Uplink(1))]
