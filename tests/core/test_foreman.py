"""What a coordinator does about jobs, one rule at a time. Whole lives are simulated in tests/sim."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.core.foreman_stage import ME, A, B, Stage, job, of

from tiermesh.core.attempts import Attempt, Checkpoint, Told
from tiermesh.core.evaluation import Gates
from tiermesh.core.foreman import Foreman
from tiermesh.core.gate import Budget
from tiermesh.core.job_effects import (
    Acknowledge,
    AskEstimate,
    AttemptTold,
    Collect,
    Copy,
    Decline,
    Order,
    Refusal,
    Save,
    Serve,
    Stop,
)
from tiermesh.core.job_rules import COLLECT_S, JobRules
from tiermesh.core.jobs import Happened, Job, JobId
from tiermesh.errors import InvalidSpec, JobExists, NotFound, NotPossibleNow, Unavailable
from tiermesh.types import Ballot, Health, NodeId, View

GOOD = {"loss": 1.0}


class TestSubmission:
    def test_it_is_answered_when_it_is_on_two_disks(self) -> None:
        stage = Stage(A, B).lead()
        effects = stage.foreman.submit(100.0, 1.0, job())
        assert isinstance(effects[0], Save)
        assert not of(Acknowledge, effects)
        (copy,) = of(Copy, effects)
        answered = stage.foreman.copied(100.0, 1.0, copy.job.id, copy.node, copy.job.stamp)
        assert [effect.job.id for effect in of(Acknowledge, answered)] == ["J1"]

    def test_alone_it_is_answered_when_it_is_on_the_own_disk(self) -> None:
        stage = Stage().lead()
        kinds = [type(effect) for effect in stage.foreman.submit(100.0, 1.0, job())]
        assert kinds.index(Save) < kinds.index(Acknowledge)

    def test_a_copy_that_nobody_answers_is_sent_again_and_then_to_another(self) -> None:
        stage = Stage(A, B).lead()
        (first,) = of(Copy, stage.foreman.submit(100.0, 1.0, job()))
        sent = [effect.node for at in range(1, 12) for effect in of(Copy, stage.foreman.tick(100.0 + at / 2, 1.0))]
        assert first.node == A
        assert sent[0] == A
        assert B in sent

    def test_what_a_node_has_lost_it_is_sent_again(self) -> None:
        stage = Stage(A).lead()
        stage.submit()
        stage.seen(Copy)
        stage.member(A, "down")
        stage.member(A, session="2")  # with an empty disk, as `Stage` answers
        assert [(effect.job.id, effect.node) for effect in stage.seen(Copy)] == [("J1", A)]

    def test_what_was_seen_of_its_data_stays_in_its_record_and_nothing_else_that_it_came_with(self) -> None:
        """The node that took it may not be the one that leads; what it saw has this one's time."""
        came = (Happened(1.0, "admit", "by me"), Happened(2.0, "data", "faq.jsonl, 2 records"))
        stage = Stage(A).lead()
        stage.foreman.submit(100.0, 50.0, replace(job(), happened=came))
        told = [(round(event.at), event.kind, event.text) for event in stage.job().happened[:2]]
        assert told == [(50, "submit", ""), (50, "data", "faq.jsonl, 2 records")]
        assert "by me" not in [event.text for event in stage.job().happened]

    def test_sent_again_it_is_the_same_job(self) -> None:
        stage = Stage(A).lead()
        first = stage.submit()
        again = stage.submit()
        assert again.asked == first.asked
        assert len(stage.foreman.records) == 1
        assert len(stage.seen(Acknowledge)) == 2

    def test_another_job_with_the_same_id_is_declined(self) -> None:
        stage = Stage().lead()
        stage.submit()
        (declined,) = of(Decline, stage.foreman.submit(100.0, 1.0, job(spec={"num_epochs": 9})))
        assert isinstance(declined.error, JobExists)

    def test_names_are_made_unique(self) -> None:
        stage = Stage().lead()
        assert [stage.submit(f"J{index}").name for index in range(3)] == ["faq", "faq-2", "faq-3"]

    @pytest.mark.parametrize(
        "rules", [JobRules(waiting_limit=0), JobRules(min_members=2)], ids=["too many wait", "too few members"]
    )
    def test_the_policy_may_forbid_it(self, rules: JobRules) -> None:
        stage = Stage(rules=rules).lead()
        (declined,) = of(Decline, stage.foreman.submit(100.0, 1.0, job()))
        assert isinstance(declined.error, Unavailable)

    def test_a_node_that_there_is_not_is_not_waited_for(self) -> None:
        stage = Stage(A).lead()
        (declined,) = stage.foreman.submit(100.0, 1.0, job(spec={"target_gpu": "node-z"}))
        assert isinstance(declined, Decline)
        assert isinstance(declined.error, InvalidSpec)
        assert declined.error.param == "target_gpu"
        assert "no node is called node-z; there are node-a, node-m" in str(declined.error)
        assert not stage.foreman.records

    @pytest.mark.parametrize("wanted", ["node-a", A, "tier:2"])
    def test_one_that_is_down_and_a_tier_that_nobody_has_yet_are_waited_for(self, wanted: str) -> None:
        stage = Stage(A).lead()
        stage.member(A, "down")
        assert stage.submit(spec={"target_gpu": wanted}).state == "estimating"

    def test_a_job_whose_node_was_removed_since_is_the_same_job_when_it_is_sent_again(self) -> None:
        stage = Stage(A).lead()
        stage.member(A, "down")
        stage.submit(spec={"target_gpu": "node-a"})
        del stage.members[A]
        stage.lead().submit(spec={"target_gpu": "node-a"})
        assert len(stage.seen(Acknowledge)) == 2

    def test_who_does_not_lead_takes_and_decides_nothing(self) -> None:
        foreman = Foreman(ME, JobRules(), [job()])
        (declined,) = of(Decline, foreman.submit(100.0, 1.0, job()))
        assert isinstance(declined.error, Unavailable)
        with pytest.raises(Unavailable):
            foreman.decide(100.0, 1.0, JobId("J1"), "cancel")

    def test_who_ceases_to_lead_tells_those_who_wait(self) -> None:
        stage = Stage(A).lead()
        stage.foreman.submit(100.0, 1.0, job())
        (declined,) = of(Decline, stage.foreman.view_changed(100.0, 1.0, View(), False))
        assert isinstance(declined.error, Unavailable)
        assert JobId("J1") in stage.foreman.records, "the next one will collect it"


class TestGate:
    @pytest.mark.parametrize(
        ("usd", "asked", "state"),
        [
            (0.0, {}, "running"),
            (None, {}, "running"),
            (3.0, {}, "waiting"),
            (3.0, {"approve": True}, "running"),
            (3.0, {"max_usd": 2.5}, "refused"),
            (9.0, {"approve": True}, "refused"),
        ],
    )
    def test_the_upper_end_decides(self, usd: float | None, asked: dict[str, Any], state: str) -> None:
        stage = Stage().lead()
        stage.usd = usd
        assert stage.submit(**asked).state == state

    def test_a_person_approves(self) -> None:
        stage = Stage().lead()
        stage.usd = 3.0
        assert "a person approves" in stage.submit().reason
        stage.decide("approve")
        assert stage.job().state == "running"

    def test_optimize_is_one_cheaper_spec_and_then_the_gate_again(self) -> None:
        stage = Stage().lead()
        stage.usd = 3.0
        stage.submit()
        stage.decide("optimize")
        assert stage.job().state == "waiting"
        assert stage.job().spec["num_epochs"] == 1
        stage.usd = 1.0
        stage.decide("optimize")
        assert stage.job().state == "running"
        assert stage.at_work().spec["max_steps"] == 6

    def test_cancelled_at_the_gate(self) -> None:
        stage = Stage().lead()
        stage.usd = 3.0
        stage.submit()
        stage.decide("cancel")
        assert stage.job().state == "cancelled"
        assert not stage.seen(Order)

    @pytest.mark.parametrize("decision", ["approve", "optimize"])
    def test_only_what_waits_can_be_decided(self, decision: str) -> None:
        stage = Stage().lead()
        stage.submit()
        with pytest.raises(NotPossibleNow, match="job faq is running"):
            stage.decide(decision)
        with pytest.raises(NotFound):
            stage.decide(decision, "nobody")

    def test_a_node_with_another_price_is_asked_before_it_gets_the_job(self) -> None:
        """It was estimated on A, and B is free first."""
        stage = Stage(A, B, rules=JobRules(slots=1)).lead()
        stage.member(ME, "draining")
        stage.member(A, "down")
        stage.submit("J0")
        assert stage.at_work("J0").node == B
        waiting = stage.submit("J1")
        assert (waiting.state, waiting.estimate and waiting.estimate.node) == ("queued", B)
        stage.member(A)
        assert [effect.node for effect in stage.seen(AskEstimate)][-1] == A
        assert stage.at_work("J1").node == A

    def test_who_can_not_estimate_is_passed_over_and_a_wrong_job_is_refused(self) -> None:
        stage = Stage(A).lead()
        (asked,) = of(AskEstimate, stage.foreman.submit(100.0, 1.0, job()))
        other = A if asked.node == ME else ME
        effects = stage.foreman.estimated(100.0, 1.0, JobId("J1"), asked.node, Refusal("is busy"))
        assert [effect.node for effect in of(AskEstimate, effects)] == [other]
        wrong = Refusal("line 3 is no JSON", "bad_data", for_good=True)
        stage.foreman.estimated(100.0, 1.0, JobId("J1"), other, wrong)
        assert (stage.job().state, stage.job().failure) == ("refused", "bad_data")


class TestOrders:
    def test_an_attempt_is_on_disk_before_it_is_ordered(self) -> None:
        stage = Stage().lead()
        stage.submit()
        saves = [
            index
            for index, effect in enumerate(stage.effects)
            if isinstance(effect, Save) and effect.job.current is not None
        ]
        orders = [index for index, effect in enumerate(stage.effects) if isinstance(effect, Order)]
        assert saves[0] < orders[0]

    def test_who_tries_a_job_is_told_and_that_others_go_first(self) -> None:
        stage = Stage().lead()
        for index in range(4):  # what is asked of nodes is not carried out: their answers are awaited
            stage.foreman.submit(stage.now, 1.0, job(f"J{index}", spec={"seed": index}))
        said = [stage.foreman.why(JobId(f"J{index}")) for index in range(4)]
        assert said[:2] == [f"{stage.members[ME].status.name} tries what it takes"] * 2
        assert said[2:] == ["waits: other jobs are tried first"] * 2
        stage.take(stage.foreman.estimated(stage.now, 1.0, JobId("J0"), ME, Refusal("it is busy")))
        assert "tries what it takes" not in stage.foreman.why(JobId("J0"))

    def test_jobs_that_come_together_are_tried_on_as_many_nodes_as_are_free(self) -> None:
        stage = Stage(A, B).lead()
        stage.member(B, "draining")
        asked = []
        for index in range(5):  # nobody answers yet
            effects = stage.foreman.submit(stage.now, 1.0, job(f"J{index}", spec={"seed": index}))
            asked += [effect.node for effect in of(AskEstimate, effects)]
        assert sorted(asked[:2]) == sorted([ME, A])
        assert asked[2:] == asked[:1], "the best one is asked about a second, and about no third"

    def test_one_job_for_each_slot_and_the_next_when_one_is_free(self) -> None:
        stage = Stage(A).lead()
        for index in range(4):
            stage.submit(f"J{index}")
        assert sorted(stage.ordered_on()) == sorted([ME, A])
        assert "trains" in stage.foreman.why(JobId("J3"))
        assert "one training slot" in stage.foreman.why(JobId("J3"))
        first = stage.at_work("J0").node
        stage.says(1, "J0", state="completed", result=GOOD)
        assert stage.ordered_on() == [first]

    def test_submitters_take_turns(self) -> None:
        stage = Stage().lead()
        for index in range(3):
            stage.submit(f"J{index}", submitter="ann")
        stage.submit("J3", submitter="bob")
        order = []
        for _ in range(4):
            (running,) = (each for each in stage.foreman.records.values() if each.state == "running")
            order.append(running.asked.submitter)
            stage.says(1, running.id, state="completed", result=GOOD)
            stage.now += 1.0
        assert order == ["ann", "bob", "ann", "ann"]

    def test_where_there_is_room_for_several(self) -> None:
        stage = Stage(A, B).lead()
        for index in range(3):
            stage.submit(f"J{index}", submitter="ann")
        stage.submit("J3", submitter="ann")
        stage.submit("J4", submitter="bob")
        stage.says(1, "J0", state="completed", result=GOOD)
        assert stage.job("J4").state == "running", "ann has two at work, bob none"
        assert stage.job("J3").state == "queued"

    def test_an_order_without_an_answer_is_given_again(self) -> None:
        stage = Stage().lead()
        stage.submit()
        stage.seen(Order)
        stage.passes(4.0)
        assert stage.ordered_on() == []
        stage.passes(2.0)
        assert stage.ordered_on() == [ME]

    def test_a_node_that_refuses_is_asked_again_later_and_others_before(self) -> None:
        stage = Stage(A).lead()
        stage.submit()
        first = stage.at_work().node
        stage.refuses("2.0 GB are free, and it needs 3.0")
        second = stage.at_work().node
        assert {first, second} == {ME, A}
        assert [each.fenced for each in stage.job().attempts] == [True, False]
        stage.refuses("trains something else")
        assert stage.job().state == "queued"
        assert "2.0 GB are free" in stage.foreman.why(JobId("J1"))
        stage.seen(Order)
        stage.passes(6.0)
        assert len(stage.ordered_on()) == 1

    def test_what_could_not_begin_waits_as_if_it_had_been_refused(self) -> None:
        """It took the node a while to find out; that is no failure of a run, however often it happens."""
        stage = Stage().lead()
        stage.submit()
        for seq in range(1, 7):
            stage.says(seq, state="stopped", phase="prepare", reason="needs 9.1 GB, and 7.4 are free")
            assert stage.job().state == "queued"
            assert "7.4 are free" in stage.foreman.why(JobId("J1"))
            waits = (5.0, 10.0, 20.0, 40.0, 60.0, 60.0)[seq - 1]
            stage.passes(waits - 0.5)
            assert stage.job().state == "queued"
            stage.passes(1.0)
            assert stage.job().state == "running"
        assert len(stage.job().attempts) == 1

    def test_nobody_on_battery_gets_it_unless_the_policy_says_so(self) -> None:
        stage = Stage()
        own = stage.members[ME]
        stage.members[ME] = replace(own, status=replace(own.status, health=Health(100, (), on_battery=True)))
        stage.lead()
        assert stage.submit().state == "estimating"
        assert "runs on battery" in stage.foreman.why(JobId("J1"))
        stage.take(stage.foreman.set_rules(101.0, 1.0, JobRules(train_on_battery=True)))
        assert stage.job().state == "running"

    def test_a_job_that_is_wrong_fails_at_once(self) -> None:
        stage = Stage(A).lead()
        stage.submit()
        stage.refuses("no such column", for_good=True)
        assert (stage.job().state, stage.job().reason, stage.job().failure) == ("failed", "no such column", "bad_data")


def at_work_on_a(*others: NodeId) -> Stage:
    """A job that runs on node A, the only one that was free, and was heard of just now."""
    stage = Stage(A, *others).lead()
    for node in (ME, *others):
        stage.member(node, "draining")
    stage.submit()
    for node in (ME, *others):
        stage.member(node)
    stage.says(1, step=1)
    assert stage.ordered_on() == [A]
    return stage


class TestLeases:
    def test_a_lost_node_is_replaced_after_five_seconds_and_not_before(self) -> None:
        stage = at_work_on_a(B)
        before = stage.at_work()
        stage.member(A, "down")
        stage.passes(4.5)
        assert stage.ordered_on() == []
        stage.passes(6.0)
        (node,) = set(stage.ordered_on())
        assert node != A
        attempt = stage.at_work()
        assert (attempt.number, attempt.cause, attempt.retries) == (before.number + 1, "moved", 0)
        assert attempt.spec == before.spec

    def test_one_that_comes_back_then_is_fenced(self) -> None:
        stage = at_work_on_a(B)
        before = stage.at_work()
        stage.member(A, "down")
        stage.passes(11.0)
        stage.member(A)
        assert stage.says(2, of_attempt=before, step=9).fenced
        assert stage.job().result is None

    def test_what_it_had_finished_counts_all_the_same(self) -> None:
        stage = at_work_on_a(B)
        before = stage.at_work()
        stage.member(A, "down")
        stage.passes(11.0)
        heard = stage.says(2, of_attempt=before, state="completed", result=GOOD)
        assert (heard.fenced, heard.kept) == (False, False), "kept once a second node knows"
        assert stage.says(2, of_attempt=before, state="completed", result=GOOD).kept
        assert stage.job().result == replace(before, fenced=True, told=Told(seq=2, state="completed", result=GOOD))
        assert stage.says(3, of_attempt=stage.job().attempts[-1]).fenced, "nobody needs the other one now"

    def test_restarted_in_time_it_goes_on_with_the_same_attempt(self) -> None:
        stage = at_work_on_a(B)
        before = stage.at_work()
        stage.member(A, "down")
        stage.passes(3.0)
        stage.member(A, session="2")
        assert stage.ordered_on() == [A]
        assert stage.at_work().id == before.id

    def test_with_nowhere_else_to_go_it_waits_for_its_node(self) -> None:
        stage = at_work_on_a()
        stage.member(ME, "draining")
        before = stage.at_work()
        stage.member(A, "down")
        stage.passes(30.0)
        assert stage.job().state == "queued"
        assert "node-a is down" in stage.foreman.why(JobId("J1"))
        stage.member(A, session="2")
        assert stage.at_work().id == before.id
        assert stage.job().state == "running"

    def test_silence_of_a_node_that_is_up_is_asked_about_before_it_is_left(self) -> None:
        stage = at_work_on_a(B)
        stage.passes(12.0)
        assert set(stage.ordered_on()) == {A}
        stage.passes(5.0)
        assert stage.at_work().node != A

    def test_a_coordinator_that_stood_still_suspects_nobody(self) -> None:
        stage = at_work_on_a(B)
        stage.now += 60.0
        stage.take(stage.foreman.tick(stage.now, 1.0))
        assert stage.ordered_on() == []

    def test_a_draining_node_is_stopped_and_its_job_goes_on_elsewhere(self) -> None:
        stage = at_work_on_a(B)
        before = stage.at_work()
        stage.member(A, "draining")
        assert {stop.node for stop in stage.seen(Stop)} == {A}
        stage.says(2, state="stopped", step=7, checkpoint=Checkpoint(7, "c" * 64, (B,)))
        after = stage.at_work()
        assert after.node in (ME, B)
        assert (after.number, after.cause) == (before.number + 1, "moved")
        assert stage.job().checkpoint == Checkpoint(7, "c" * 64, (B,))

    def test_who_stops_again_and_again_without_a_step_has_failed(self) -> None:
        stage = Stage().lead()
        stage.submit()
        for seq in range(1, 30):
            if stage.job().is_over:
                break
            stage.says(2 * seq - 1, state="running")
            stage.says(2 * seq, state="stopped", reason="somebody killed it")
        assert stage.job().state == "failed"
        assert stage.job().failure == "unexplained"
        assert "again and again" in stage.job().reason


class TestEnds:
    def test_completed_and_served(self) -> None:
        stage = Stage(A).lead()
        stage.submit()
        stage.says(1, state="completed", result=GOOD, artifact="d" * 64)
        assert stage.job().state == "completed"
        (served,) = stage.seen(Serve)
        assert served.job.result is not None
        assert served.job.result.told is not None
        assert served.job.result.told.artifact == "d" * 64

    def test_a_new_coordinator_serves_what_is_completed_and_not_forgotten(self) -> None:
        stage = Stage().lead()
        stage.submit()
        with pytest.raises(NotPossibleNow, match="cancel it first"):
            stage.decide("forget")
        stage.says(1, state="completed", result=GOOD)
        completed = stage.job()
        stage.decide("forget")
        assert [served.job.id for served in Stage(records=(completed,)).lead().seen(Serve)] == ["J1"]
        assert Stage(records=(stage.job(),)).lead().seen(Serve) == []

    def test_a_failure_is_treated_with_another_spec_and_counted(self) -> None:
        stage = Stage().lead()
        stage.submit()
        stage.says(1, state="failed", failure="out_of_memory", reason="no memory")
        attempt = stage.at_work()
        assert (attempt.number, attempt.cause, attempt.retries) == (2, "retried", 1)
        assert (attempt.spec["micro_batch_size"], attempt.spec["gradient_accumulation_steps"]) == (2, 2)
        assert stage.job().asked.spec["micro_batch_size"] == 4

    def test_retries_are_bounded_and_moves_are_none(self) -> None:
        stage = Stage(A).lead()
        stage.submit(spec={"method": "full_finetune", "micro_batch_size": 64})
        for seq in range(1, 9):
            if stage.job().is_over:
                break
            stage.refuses("busy")
            stage.passes(6.0)
            stage.says(seq, state="failed", failure="out_of_memory", reason="no memory")
        assert stage.job().state == "failed"
        assert stage.job().retries == 3
        assert [each.cause for each in stage.job().attempts].count("retried") == 3

    def test_what_would_fail_again_is_not_tried_again(self) -> None:
        stage = Stage().lead()
        stage.submit()
        stage.says(1, state="failed", failure="bad_data", reason="line 3 is no JSON")
        assert (stage.job().state, stage.job().failure) == ("failed", "bad_data")
        assert "line 3 is no JSON" in stage.job().reason

    def test_a_result_that_is_not_good_enough_is_treated_and_does_not_count(self) -> None:
        stage = Stage().lead()
        stage.submit(gates=Gates(max_final_loss=2.0))
        stage.says(1, state="completed", result={"loss": 9.0, "train_loss": 9.0, "first_loss": 10.0}, steps=12)
        assert stage.job().result is None
        assert [event.kind for event in stage.job().happened].count("evaluation") == 1
        stage.passes(1.0)
        assert stage.at_work().spec["num_epochs"] == 6
        stage.says(2, state="completed", result=GOOD)
        assert stage.job().state == "completed"

    def test_the_gate_is_asked_again_about_a_spec_that_takes_longer(self) -> None:
        stage = Stage(rules=JobRules(budget=Budget(max_usd=1.0, soft_usd=1.0))).lead()
        stage.submit()
        stage.usd = 1.5
        stage.says(1, state="completed", result={"loss": 9.0, "train_loss": 9.0, "first_loss": 10.0}, steps=12)
        stage.passes(1.0)
        assert (stage.job().state, stage.job().failure) == ("refused", "over_budget")

    def test_cancelling_waits_for_the_checkpoint(self) -> None:
        stage = Stage().lead()
        stage.submit()
        stage.says(1, step=3)
        stage.decide("cancel")
        assert stage.job().state == "cancelling"
        assert len(stage.seen(Stop)) == 1
        stage.says(2, state="stopped", checkpoint=Checkpoint(3, "c" * 64))
        assert stage.job().state == "cancelled"
        assert stage.job().checkpoint == Checkpoint(3, "c" * 64)

    def test_and_not_for_a_node_that_is_away_or_deaf(self) -> None:
        stage = at_work_on_a()
        stage.member(A, "down")
        stage.decide("cancel")
        assert stage.job().state == "cancelled"

        stage = at_work_on_a()
        stage.decide("cancel")
        stage.passes(14.0)
        assert stage.job().state == "cancelled"
        assert len(stage.seen(Stop)) > 5, "said again while nothing is heard"

    def test_what_is_over_can_not_be_cancelled_and_twice_is_once(self) -> None:
        stage = Stage().lead()
        stage.submit()
        stage.decide("cancel")
        stage.decide("cancel")
        stage.says(2, state="completed", result=GOOD)
        with pytest.raises(NotPossibleNow, match="nothing is left to cancel"):
            stage.decide("cancel")


class TestTakeover:
    def record(self) -> Job:
        """Of a job that runs on A, as an earlier coordinator left it."""
        attempt = Attempt(number=1, ballot=Ballot(3, B), node=A, spec={"micro_batch_size": 4})
        before = replace(job(), attempts=(attempt,), stamp=(4, Ballot(3, B)))
        return before.after("admit", Ballot(3, B), 1.0).after("begin", Ballot(3, B), 1.0)

    def test_records_of_all_are_collected_before_anything_is_ordered(self) -> None:
        foreman = Foreman(ME, JobRules(), [replace(self.record(), attempts=())])
        stage = Stage(A, B)
        view = View(Ballot(5, ME), 1, ME, dict(stage.members))
        effects = foreman.view_changed(100.0, 1.0, view, True)
        assert {effect.node for effect in of(Collect, effects)} == {A, B}
        assert not of(Order, effects)
        assert not of(Order, foreman.learnt(100.1, 1.0, (self.record(),), A, whole=True))
        foreman.learnt(100.2, 1.0, (), B, whole=True)
        assert foreman.records[JobId("J1")].current == self.record().current
        told = AttemptTold(JobId("J1"), 1, Ballot(3, B), Told(seq=1, step=5))
        assert not foreman.told(100.3, 1.0, A, told).fenced
        assert foreman.records[JobId("J1")].state == "running"

    def test_but_for_three_seconds_at_most(self) -> None:
        waiting = replace(self.record(), attempts=()).after("interrupt", Ballot(3, B), 1.0)
        foreman = Foreman(ME, JobRules(), [waiting])
        stage = Stage(A)
        foreman.view_changed(100.0, 1.0, View(Ballot(5, ME), 1, ME, dict(stage.members)), True)
        early = [effect for at in range(1, 6) for effect in foreman.tick(100.0 + at / 2, 1.0)]
        assert not of(AskEstimate, early)
        assert len(of(Collect, early)) >= 2, "asked again and again"
        assert of(AskEstimate, foreman.tick(100.0 + COLLECT_S, 1.0))

    def just_spoken(self) -> Stage:
        """After a power cut: A, which is not a member again yet, says that its attempt stopped."""
        stage = Stage(A, B)
        stage.foreman = Foreman(ME, JobRules(), [self.record()])
        stage.member(A, "down")
        stage.says(1, state="stopped", reason="its node ended", step=30)
        assert stage.job().state == "queued"
        return stage

    def test_a_node_that_is_just_coming_back_is_waited_for(self) -> None:
        stage = self.just_spoken()
        stage.passes(2.0)
        assert stage.ordered_on() == []
        stage.member(A)
        stage.passes(1.0)
        assert stage.ordered_on() == [A]
        assert stage.at_work().id == (1, Ballot(3, B))

    def test_but_no_longer_than_a_lease(self) -> None:
        stage = self.just_spoken()
        stage.passes(JobRules().lease_s + 1.0)
        (node,) = set(stage.ordered_on())
        assert node != A

    def test_a_node_that_had_a_later_order_from_another_half_gets_a_new_one(self) -> None:
        """It takes none before that any more, for ever."""
        stage, record = Stage(A), self.record()
        later = replace(record.attempts[0], ballot=Ballot(4, B), fenced=True)
        stage.foreman = Foreman(ME, JobRules(), [replace(record, attempts=(*record.attempts, later))])
        stage.member(ME, "draining")
        stage.says(1, state="stopped", phase="train", step=10, reason="its node drains")
        stage.passes(1.0)
        assert stage.ordered_on() == [A]
        assert stage.at_work().number == 2

    def test_an_attempt_that_nobody_knows_of_trains_on_and_its_node_is_asked(self) -> None:
        stage = Stage(A).lead()
        told = AttemptTold(JobId("J1"), 1, Ballot(3, B), Told(seq=1))
        heard = stage.foreman.told(stage.now, 1.0, A, told)
        assert (heard.fenced, heard.kept) == (False, False)
        assert [effect.node for effect in of(Collect, heard.effects)] == [A]
        stage.take(stage.foreman.learnt(stage.now, 1.0, (self.record(),), A, whole=True))
        assert not stage.foreman.told(stage.now, 1.0, A, told).fenced

    def test_of_two_attempts_of_two_halves_the_one_further_on_goes_on(self) -> None:
        one = self.record()
        far = replace(one.attempts[0], told=Told(seq=1, step=50))
        near = replace(one.attempts[0], ballot=Ballot(4, ME), node=B, told=Told(seq=1, step=5))
        stage = Stage(A, B, records=(replace(one, attempts=(far, near)),)).lead()
        stage.passes(1.0)
        assert [each.fenced for each in stage.job().attempts] == [False, True]
        assert stage.at_work().node == A

    def test_an_earlier_result_of_the_other_half_takes_the_place_of_the_own(self) -> None:
        one = self.record()
        mine = replace(one.attempts[0], number=2, told=Told(seq=1, state="completed", result=GOOD))
        stage = Stage(A, B, records=(replace(one, attempts=(mine,)).after("complete", Ballot(4, ME), 1.0),)).lead()
        stage.seen(Serve)
        theirs = replace(one.attempts[0], told=Told(seq=1, state="completed", result=GOOD))
        other = replace(one, attempts=(theirs,)).after("complete", Ballot(3, B), 2.0)
        stage.take(stage.foreman.learnt(stage.now, 1.0, (other,), B))
        result = stage.job().result
        assert result is not None
        assert result.number == 1
        (served,) = stage.seen(Serve)
        assert served.job.result == result
        assert "result" in [event.kind for event in stage.job().happened]

    def test_a_raised_ballot_asks_everybody_again(self) -> None:
        stage = Stage(A).lead()
        stage.seen(Collect)
        stage.lead(Ballot(9, ME))
        assert [effect.node for effect in stage.seen(Collect)] == [A]

    def test_a_cancel_that_the_other_half_heard_is_obeyed(self) -> None:
        stage = Stage(A).lead()
        stage.submit()
        stage.says(1, step=1)
        elsewhere = replace(stage.job(), cancel_asked=True)
        stage.take(stage.foreman.learnt(stage.now, 1.0, (elsewhere,), A))
        stage.passes(1.0)
        assert stage.job().state == "cancelling"

    def test_who_does_not_lead_keeps_what_it_is_given(self) -> None:
        foreman = Foreman(A, JobRules())
        (saved,) = of(Save, foreman.learnt(100.0, 1.0, (self.record(),), ME))
        assert saved.job == self.record()
        assert foreman.learnt(100.0, 1.0, (self.record(),), ME) == []
        assert not foreman.told(100.0, 1.0, A, AttemptTold(JobId("J1"), 1, Ballot(3, B), Told(seq=1))).kept
