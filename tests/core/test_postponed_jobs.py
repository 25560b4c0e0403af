"""Jobs that no node is large enough for: they wait where a person sees why, and go on when a larger node comes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.core.foreman_stage import ME, A, B, Stage

from tiermesh.core.gate import Budget
from tiermesh.core.job_effects import AskEstimate, JobEffect, Order, Refusal, Shortage
from tiermesh.core.job_rules import JobRules
from tiermesh.core.jobs import Estimate, Job
from tiermesh.types import Hardware, NodeId

GB = 10**9
SPEC = {"method": "full_finetune", "num_epochs": 3}


class Memory(Stage):
    """Nodes of so many bytes, which say it when a job that `needs` more is to be tried there."""

    def __init__(self, *others: NodeId, needs: int = round(9.1 * GB), rules: JobRules | None = None) -> None:
        super().__init__(*others, rules=rules)
        self.needs = needs
        self.sizes = dict.fromkeys((ME, *others), round(7.4 * GB))
        self.asked: list[NodeId] = []
        for node in self.members:
            self.resize(node, self.sizes[node])

    def resize(self, node: NodeId, size: int, session: str = "1") -> None:
        """The machine has so much memory now, and says so."""
        self.sizes[node] = size
        status = replace(self.members[node].status, hardware=Hardware(ram_bytes=size))
        self.members[node] = replace(self.members[node], status=status)
        if self.foreman.leads:
            self.member(node, session=session)

    def take(self, effects: list[JobEffect]) -> None:
        for effect in effects:
            if isinstance(effect, AskEstimate):
                self.asked.append(effect.node)
                self.take(self.foreman.estimated(*self._times, effect.job.id, effect.node, self._answer(effect.node)))
            else:
                super().take([effect])

    def _answer(self, node: NodeId) -> Estimate | Refusal:
        if (has := self.sizes[node]) < self.needs:
            return Refusal("it is too large", shortage=Shortage(self.needs, has))
        return Estimate(node=node, memory_bytes=self.needs, usd=self.usd, usd_high=self.usd, steps=12)

    def why(self) -> str:
        return self.foreman.why(self.job().id)


def test_what_is_too_large_for_all_is_queued_and_says_so() -> None:
    stage = Memory(A, B)
    stage.lead()
    job = stage.submit(spec=SPEC)
    assert (job.state, job.estimate) == ("queued", None)
    assert stage.why() == "waits: needs 9.1 GB, the largest node, node-m, has 7.4"
    assert len(stage.asked) == 1, "the others are no larger than the one that was asked"
    stage.passes(300.0)
    assert len(stage.asked) == 1
    assert [event.kind for event in stage.job().happened] == ["submit", "postpone"], "nothing is written meanwhile"


def test_it_goes_on_when_a_larger_node_joins() -> None:
    stage = Memory(A)
    stage.lead()
    stage.member(A, "down")
    stage.submit(spec=SPEC)
    assert stage.job().state == "queued"
    stage.resize(A, 16 * GB)
    assert stage.job().state == "running"
    assert stage.at_work().node == A
    assert [event.kind for event in stage.job().happened][1:5] == ["postpone", "reconsider", "estimate", "admit"]


def test_and_when_one_comes_back_with_more_memory() -> None:
    stage = Memory()
    stage.lead()
    stage.submit(spec=SPEC)
    stage.resize(ME, 16 * GB, session="2")
    assert stage.job().state == "running"


@pytest.mark.parametrize("usd", [3.0, 9.0])
def test_the_gate_is_not_passed_by(usd: float) -> None:
    stage = Memory(A, rules=JobRules(budget=Budget(max_usd=5.0, soft_usd=2.0)))
    stage.lead()
    stage.member(A, "down")
    stage.submit(spec=SPEC)
    stage.usd = usd
    stage.resize(A, 16 * GB)
    assert stage.job().state == ("waiting" if usd < 5 else "refused")
    assert not stage.seen(Order)


def test_an_estimate_of_the_spec_before_lets_nothing_through() -> None:
    """Tried on A and made cheaper by a person; then A is away, and B is too small for it."""
    stage = Memory(A, B)
    stage.sizes[A] = 16 * GB
    stage.resize(A, 16 * GB)
    stage.lead()
    stage.usd = 3.0
    assert stage.submit(spec=SPEC).state == "waiting"
    stage.member(A, "down")
    stage.decide("optimize")
    assert (stage.job().state, stage.job().estimate) == ("queued", None)
    stage.member(A)
    assert stage.job().state == "waiting"
    assert not stage.seen(Order)


def test_a_node_that_has_less_than_it_says_is_not_asked_again_and_again() -> None:
    """Its memory is shared out by a cgroup, say; what it told of this job counts."""
    stage = Memory(A)
    stage.lead()
    for node in (ME, A):
        stage.resize(node, 64 * GB)
        stage.sizes[node] = 7 * GB
    stage.submit(spec=SPEC)
    stage.passes(300.0)
    assert stage.job().state == "queued"
    assert sorted(stage.asked) == sorted([ME, A])
    assert "node-a has 7.0 GB of 9.1 GB" in stage.why()
    stage.decide("retry")
    assert len(stage.asked) == 4, "a person may ask them again"


def test_a_smaller_spec_is_tried_on_small_nodes() -> None:
    stage = Memory(A)
    stage.sizes[A] = 16 * GB
    stage.resize(A, 16 * GB)
    stage.lead()
    stage.usd = 3.0
    stage.submit(spec=SPEC)
    stage.member(A, "down")
    stage.needs = GB
    stage.decide("optimize")
    assert stage.asked[-1] == ME
    assert stage.job().state == "waiting"


def test_who_takes_over_asks_once_more() -> None:
    stage = Memory()
    stage.lead()
    left: Job = stage.submit(spec=SPEC)
    heir = Memory()
    heir.take(heir.foreman.learnt(100.0, 1.0, (left,), A))
    heir.lead()
    heir.passes(300.0)
    assert heir.job().state == "queued"
    assert heir.asked == [ME]


def test_it_can_be_cancelled() -> None:
    stage = Memory()
    stage.lead()
    stage.submit(spec=SPEC)
    stage.decide("cancel")
    assert stage.job().state == "cancelled"
