"""Who submits jobs to the simulated mesh and decides about them: patient people, who ask any machine that is awake."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tiermesh.core.foreman import Decision
from tiermesh.core.jobs import Job, JobId
from tiermesh.errors import InvalidInput, Unavailable
from tiermesh.sim.jobs_machine import JobMachine
from tiermesh.types import NodeId

if TYPE_CHECKING:
    from tiermesh.sim.jobs_world import JobWorld


class People:
    """`answered` has all submissions, and whether the submitter has an answer."""

    def __init__(self, world: JobWorld) -> None:
        self._world = world
        self.answered: dict[JobId, bool] = {}
        self._waiters: dict[tuple[NodeId, JobId], list[Callable[[bool], None]]] = {}

    def answer(self, machine: JobMachine, job: JobId, taken: bool) -> None:
        """A coordinator answers whoever asked it."""
        for waiter in self._waiters.pop((machine.id, job), []):
            waiter(taken)

    def submit(self, job: Job) -> None:
        """Ask any node, until there is an answer."""
        self.answered.setdefault(job.id, False)
        self._ask_to_take(job)

    def decide(self, job: JobId, decision: Decision) -> None:
        """Tell any node, once."""
        asked = self._anybody()
        if asked is not None and asked.leader is not None:
            self._world.send(
                asked.id, asked.leader, partial(self._decide, self._world.machines[asked.leader], job, decision)
            )

    def _ask_to_take(self, job: Job) -> None:
        if self.answered.get(job.id, True):
            return
        asked = self._anybody()
        if asked is not None and asked.leader is not None:
            leader = self._world.machines[asked.leader]
            self._world.send(asked.id, leader.id, partial(self._take, leader, asked.id, job))
        self._world.clock.at(self._world.now + self._world.rng.uniform(1.0, 4.0), self._ask_to_take, job)

    def _take(self, leader: JobMachine, asker: NodeId, job: Job) -> None:
        def answer(taken: bool) -> None:
            if taken and job.id in self.answered:
                self._world.send(leader.id, asker, lambda: self.answered.__setitem__(job.id, True))

        assert leader.foreman is not None
        self._waiters.setdefault((leader.id, job.id), []).append(answer)
        self._world.perform(leader, leader.foreman.submit(self._world.now, self._world.wall, job))

    def _decide(self, leader: JobMachine, job: JobId, decision: Decision) -> None:
        assert leader.foreman is not None
        if decision == "approve" and job in leader.foreman.records and leader.foreman.records[job].state == "waiting":
            self._world.invariants.approved.add(job)
        try:
            effects = leader.foreman.decide(self._world.now, self._world.wall, job, decision)
        except (InvalidInput, Unavailable):
            return
        self._world.perform(leader, effects)
        if decision == "cancel":
            self._world.then(leader, lambda: self._world.invariants.cancelled.setdefault(job, self._world.now))
        elif decision == "forget":
            self._world.then(leader, lambda: self._world.invariants.forgotten.add(job))

    def _anybody(self) -> JobMachine | None:
        choices = [machine for machine in self._world.up() if not machine.frozen]
        return self._world.rng.choice(choices) if choices else None
