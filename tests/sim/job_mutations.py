"""The leading of jobs, broken on purpose, one rule at a time. Each must be caught; see test_job_mutations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from tiermesh.core import attempts, dispatch, foreman, gate, job_steps, jobs
from tiermesh.core.attempts import Attempt
from tiermesh.core.foreman import Decision, Foreman
from tiermesh.core.handover import Handover
from tiermesh.core.job_effects import Heard, JobEffect, Order, Serve
from tiermesh.core.jobs import Course, Job, JobId
from tiermesh.core.placement import Place
from tiermesh.core.reign import Reign
from tiermesh.types import NodeId

Mutation = Callable[[pytest.MonkeyPatch], None]


def answer_before_there_is_a_copy(patch: pytest.MonkeyPatch) -> None:
    """Whatever is on the own disk is safe."""
    patch.setattr(Reign, "is_safe", lambda self, job: True)


def order_before_saving(patch: pytest.MonkeyPatch) -> None:
    """Orders go out first."""
    original = job_steps.think

    def think(reign: Reign) -> list[JobEffect]:
        return sorted(original(reign), key=lambda effect: not isinstance(effect, Order))

    patch.setattr(foreman, "think", think)


def forget_attempts_of_the_other_half(patch: pytest.MonkeyPatch) -> None:
    """A join keeps the attempts of one record."""
    original = jobs.join
    patch.setattr(foreman, "join", lambda one, other: replace(original(one, other), attempts=other.attempts))


def forget_cancels_of_the_other_half(patch: pytest.MonkeyPatch) -> None:
    """A join keeps the wish of one record."""
    original = jobs.join
    patch.setattr(foreman, "join", lambda one, other: replace(original(one, other), cancel_asked=other.cancel_asked))


def let_the_later_stamp_beat_an_end(patch: pytest.MonkeyPatch) -> None:
    """Of two courses the later one counts."""

    def course(one: Course, other: Course) -> Course:
        return max(one, other, key=lambda each: (each.stamp, attempts.canonical(each)))

    patch.setattr(jobs, "_course", course)


def let_the_last_result_win(patch: pytest.MonkeyPatch) -> None:
    """A fenced attempt's successor takes its result's place."""

    def result(self: Job) -> Attempt | None:
        return next((attempt for attempt in reversed(self.attempts) if attempt.counts), None)

    patch.setattr(Job, "result", property(result))


def never_say_fenced(patch: pytest.MonkeyPatch) -> None:
    """Whoever was replaced goes on."""
    original = Foreman.told

    def told(self: Foreman, *arguments: Any) -> Heard:
        return replace(original(self, *arguments), fenced=False)

    patch.setattr(Foreman, "told", told)


def count_no_retries(patch: pytest.MonkeyPatch) -> None:
    """Each retry is the first."""
    original = dispatch._next_attempt

    def next_attempt(reign: Reign, job: Job, node: NodeId) -> Attempt:
        return replace(original(reign, job, node), retries=0)

    patch.setattr(dispatch, "_next_attempt", next_attempt)


def collect_nothing(patch: pytest.MonkeyPatch) -> None:
    """A new coordinator knows it all."""
    patch.setattr(Handover, "want", lambda self, node: None)


def order_once(patch: pytest.MonkeyPatch) -> None:
    """An order that was lost stays lost."""
    original = Reign.order

    def order(self: Reign, job: Job, attempt: Attempt) -> None:
        is_first = attempt.told is None and self._leases.get(job.id) is None
        original(self, job, attempt)
        if not is_first:
            self._out = [effect for effect in self._out if not isinstance(effect, Order) or effect.job.id != job.id]

    patch.setattr(Reign, "order", order)


def wait_for_the_dead(patch: pytest.MonkeyPatch) -> None:
    """A lease never ends."""
    original = Reign.__init__

    def init(self: Reign, *arguments: Any) -> None:
        original(self, *arguments)
        self.rules = replace(self.rules, lease_s=math.inf)

    patch.setattr(Reign, "__init__", init)


def give_a_slot_twice(patch: pytest.MonkeyPatch) -> None:
    """What was just given away is still free."""

    def taken(each: Place, job: Job) -> Place:
        return each

    patch.setattr(dispatch, "_taken", taken)


def ask_nobody_for_money(patch: pytest.MonkeyPatch) -> None:
    """The gate is open."""
    patch.setattr(gate, "decide", lambda *_, **__: gate.Decision("approve", ""))


def take_a_repeated_submission_anew(patch: pytest.MonkeyPatch) -> None:
    """What is sent again is another job with the same id."""
    original = Foreman.submit

    def submit(self: Foreman, now: float, wall: float, job: Job) -> list[JobEffect]:
        self._records.pop(job.id, None)
        return original(self, now, wall, job)

    patch.setattr(Foreman, "submit", submit)


def serve_what_came_first(patch: pytest.MonkeyPatch) -> None:
    """Another result changes nothing."""
    original = Reign._serve

    def serve(self: Reign, job: Job) -> None:
        if job.id not in self._served:
            original(self, job)

    patch.setattr(Reign, "_serve", serve)


def fence_nobody(patch: pytest.MonkeyPatch) -> None:
    """The attempt before goes on besides the new one."""
    original = Job.with_attempt

    def with_attempt(self: Job, attempt: Attempt) -> Job:
        return original(self, replace(attempt, fenced=False))

    patch.setattr(Job, "with_attempt", with_attempt)


def copy_once(patch: pytest.MonkeyPatch) -> None:
    """Only new jobs are copied, not what becomes of them."""
    original = Reign._keep

    def keep(self: Reign, job: Job, *, durable: bool = True) -> Job:
        is_known = job.id in self.records
        kept = original(self, job, durable=durable)
        if is_known:
            self._unsafe.discard(job.id)
        return kept

    patch.setattr(Reign, "_keep", keep)


def forget_what_goes_on(patch: pytest.MonkeyPatch) -> None:
    """A person's word is enough."""
    original = Foreman.decide

    def decide(self: Foreman, now: float, wall: float, job: JobId, decision: Decision) -> list[JobEffect]:
        if decision == "forget" and self._reign is not None and job in self._records:
            self._reign.put(replace(self._records[job], forgotten=True))
        return original(self, now, wall, job, decision)

    patch.setattr(Foreman, "decide", decide)


def remember_what_another_forgot(patch: pytest.MonkeyPatch) -> None:
    """A copy from a node that was away brings it back."""
    original = jobs.join
    patch.setattr(foreman, "join", lambda one, other: replace(original(one, other), forgotten=other.forgotten))


def serve_what_was_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A new coordinator serves all results."""
    original = Reign._serve

    def serve(self: Reign, job: Job) -> None:
        if job.forgotten and job.result is not None and job.id not in self._served:
            self._served[job.id] = job.result.id
            self._out.append(Serve(job))
        original(self, job)

    patch.setattr(Reign, "_serve", serve)


def begin_what_nobody_could_try(patch: pytest.MonkeyPatch) -> None:
    """What was postponed needs no gate."""
    original = dispatch._begin

    def begin(reign: Reign, job: Job, places: Mapping[NodeId, Place]) -> NodeId | None:
        if dispatch._is_postponed(job) and (found := dispatch._choose(reign, job, places)).node is not None:
            dispatch._order(reign, job, found.node)
            return found.node
        return original(reign, job, places)

    patch.setattr(dispatch, "_begin", begin)


CAUGHT: Mapping[str, Mutation] = {
    each.__name__: each
    for each in (
        answer_before_there_is_a_copy,
        order_before_saving,
        forget_attempts_of_the_other_half,
        forget_cancels_of_the_other_half,
        let_the_later_stamp_beat_an_end,
        let_the_last_result_win,
        never_say_fenced,
        count_no_retries,
        collect_nothing,
        order_once,
        wait_for_the_dead,
        give_a_slot_twice,
        ask_nobody_for_money,
        take_a_repeated_submission_anew,
        serve_what_came_first,
        fence_nobody,
        copy_once,
        forget_what_goes_on,
        remember_what_another_forgot,
        serve_what_was_forgotten,
        begin_what_nobody_could_try,
    )
}
"""By an invariant, or by what is demanded when the faults end."""
