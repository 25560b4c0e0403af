"""Jobs that fit on nodes whose memory others have just now: they wait, and go where it is free first."""

from __future__ import annotations

from tests.core.foreman_stage import ME, A, B, Stage, of

from tiermesh.core.job_effects import AskEstimate, JobEffect, Order, Refusal
from tiermesh.core.job_rules import OBJECTION_MAX_S
from tiermesh.types import NodeId

HOURS_S = 3 * 3600.0
SHORT = Refusal("it needs about 9.1 GiB, and 7.4 GiB are free now, besides the reserve", "slot_taken")


class Crowd(Stage):
    """Nodes judge what is to begin at once by what is free."""

    def __init__(self, *others: NodeId) -> None:
        super().__init__(*others)
        self.crowded: set[NodeId] = set()
        self.asked_in_vain = 0

    def take(self, effects: list[JobEffect]) -> None:
        for effect in effects:
            match effect:
                case AskEstimate(job, node) if node in self.crowded and job.memory_bytes is not None:
                    self.asked_in_vain += 1
                    self.effects.append(effect)
                    self.take(self.foreman.estimated(*self._times, job.id, node, SHORT))
                case Order(job, attempt):
                    self.effects.append(effect)
                    answer = SHORT if attempt.node in self.crowded else None
                    self.take(self.foreman.order_answered(*self._times, job.id, attempt.id, answer))
                case _:
                    super().take([effect])

    def why(self) -> str:
        return self.foreman.why(self.job().id)


def test_another_node_gets_it() -> None:
    stage = Crowd(A)
    stage.lead()
    stage.submit("J0")
    busy = stage.at_work("J0").node
    (other,) = {ME, A} - {busy}
    stage.says(1, "J0", state="completed", result={"loss": 1.0})
    stage.crowded = {busy}
    assert stage.submit().state == "running"
    assert stage.at_work().node == other


def test_what_it_takes_is_asked_of_a_node_that_has_not_the_memory_now() -> None:
    """Else nobody knew what it costs before it could begin."""
    stage = Crowd()
    stage.crowded = {ME}
    stage.lead()
    job = stage.submit()
    assert (job.state, job.estimate is not None) == ("queued", True)
    assert SHORT.reason in stage.why()


def test_it_waits_for_hours_and_begins_within_a_minute_of_there_being_room() -> None:
    stage = Crowd(A, B)
    stage.crowded = {ME, A, B}
    stage.lead()
    stage.submit()
    stage.passes(HOURS_S)
    assert stage.job().state == "queued"
    assert SHORT.reason in stage.why()
    assert len(stage.job().attempts) == 1, "orders are kept for ever"
    assert stage.asked_in_vain > HOURS_S / OBJECTION_MAX_S
    (there,) = sorted(stage.crowded - {stage.at_work().node})[:1]
    stage.crowded.discard(there)
    stage.passes(OBJECTION_MAX_S + 1.0)
    assert stage.job().state == "running"
    assert stage.at_work().node == there
    assert len(stage.job().attempts) == 2


def test_what_trained_already_moves_without_a_question() -> None:
    """It has its price, and its node is gone."""
    stage = Crowd(A)
    stage.lead()
    stage.member(ME, "draining")
    stage.submit()
    stage.says(1, step=5, phase="train")
    stage.member(ME)
    stage.seen(AskEstimate)
    stage.member(A, "down")
    stage.passes(6.0)
    assert stage.at_work().node == ME
    assert not of(AskEstimate, stage.effects)
