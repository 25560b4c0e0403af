"""A simulated mesh that leads and trains jobs: real foremen, pretended training, and an election that is made up
(`sim.jobs_election`). Here is what carries out effects, and what carries messages."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import assert_never

from tiermesh.core.attempts import Attempt, AttemptId, Checkpoint
from tiermesh.core.foreman import Foreman
from tiermesh.core.job_effects import (
    Acknowledge,
    AskEstimate,
    AttemptTold,
    Collect,
    Copy,
    Decline,
    Fault,
    JobEffect,
    Order,
    Refusal,
    Save,
    Serve,
    Shortage,
    Stop,
    Tell,
)
from tiermesh.core.job_rules import JobRules
from tiermesh.core.jobs import Estimate, Job, JobId
from tiermesh.sim.clock import Clock
from tiermesh.sim.invariants import Violation
from tiermesh.sim.jobs_election import Decrees
from tiermesh.sim.jobs_invariants import JobInvariants
from tiermesh.sim.jobs_machine import JobMachine, Trial, TrialKey, message
from tiermesh.sim.jobs_people import People
from tiermesh.sim.network import WIRED, Network, Weather
from tiermesh.types import Ballot, NodeId, SessionId

BEAT_S = 0.5
"""A step of training, a look at the clock; every second one tells."""
ANSWER_S = 10.0
"""A shell gives up on an estimate."""
GIGABYTE = 10**9
SHORTAGE = Shortage(8 * GIGABYTE, 4 * GIGABYTE)
"""Of small machines, for large jobs."""
EPOCH = 1_000_000.0
"""Wall time of the beginning."""


class JobWorld:
    """Everything there is, from one seed."""

    def __init__(self, seed: int, *, weather: Weather = WIRED, slow_disks: bool = False) -> None:
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.network = Network(random.Random(seed + 1), weather)
        self.machines: dict[NodeId, JobMachine] = {}
        self.invariants = JobInvariants()
        self.served: dict[tuple[NodeId, JobId], AttemptId] = {}
        """What each coordinator's last `Serve` of a job was about."""
        self.orders = 0
        self._others_up: dict[JobId, bool] = {}
        """Were there others when it was decided to answer a submitter?"""
        self._disk_s = (0.01, 0.3) if slow_disks else (0.0005, 0.005)
        self.people = People(self)
        Decrees(self)

    @property
    def now(self) -> float:
        """Simulated seconds."""
        return self.clock.now

    def run(self, duration_s: float) -> None:
        """Let time pass."""
        self.clock.run(self.now + duration_s)

    def up(self) -> list[JobMachine]:
        """Machines whose daemon runs, frozen ones included."""
        return [machine for machine in self.machines.values() if machine.is_up]

    # Machines

    def add(self, name: str) -> JobMachine:
        """A machine, switched off."""
        machine = self.machines[NodeId(name)] = JobMachine(NodeId(name))
        return machine

    def start(self, machine: JobMachine) -> None:
        """Start the daemon with what is on its disk."""
        machine.run += 1
        machine.session = SessionId(f"{machine.run:04d}")
        machine.foreman = Foreman(machine.id, JobRules(), machine.disk.values())
        machine.leads, machine.leader, machine.draining, machine.frozen = False, None, False, False
        self.clock.at(self.now + self.rng.uniform(0, BEAT_S), self._beat, machine, machine.run, 0)

    def crash(self, machine: JobMachine) -> None:
        """Memory is lost, a write in flight may be."""
        if machine.writing is not None and self.rng.random() < 0.5:
            self._write(machine, machine.writing)
        machine.writing = None
        machine.effects.clear()
        machine.mailbox.clear()
        machine.foreman = None
        machine.leads = False
        machine.run += 1
        machine.room.fall()

    def wipe(self, machine: JobMachine) -> None:
        """The disk is replaced; the machine is off. What was accepted there alone is nobody's fault."""
        self.forget_alone(machine)
        machine.disk.clear()
        machine.room.trials.clear()

    def forget_alone(self, machine: JobMachine) -> None:
        """What this machine alone was told, while no other was up, nobody else can know."""
        for job in machine.disk:
            others = [each.disk[job] for each in self.machines.values() if each is not machine and job in each.disk]
            if not others and self.invariants.accepted.get(job, set()) <= {machine.id}:
                self.invariants.accepted.pop(job, None)
                self.people.answered.pop(job, None)
            if not any(each.cancel_asked for each in others):
                self.invariants.cancelled.pop(job, None)
            if not any(each.forgotten for each in others):
                self.invariants.forgotten.discard(job)

    def freeze(self, machine: JobMachine, trains: bool) -> None:
        """The daemon stands still; its worker may go on."""
        machine.frozen, machine.trains_frozen = True, trains

    def thaw(self, machine: JobMachine) -> None:
        """Mail and clock come in any order."""
        machine.frozen = False
        mail, machine.mailbox = machine.mailbox, []
        self.rng.shuffle(mail)
        for action in mail:
            action()
        self._carry_out(machine)

    # A machine's life

    def _beat(self, machine: JobMachine, run: int, count: int) -> None:
        if machine.run != run:
            return
        self.clock.at(self.now + BEAT_S, self._beat, machine, run, count + 1)
        if (not machine.frozen or machine.trains_frozen) and machine.room.train(self.now):
            self._copy_checkpoint(machine)
        if machine.frozen or machine.foreman is None:
            return
        if machine.foreman.deadline <= self.now:
            self.perform(machine, machine.foreman.tick(self.now, self.wall))
        if count % 2:
            for key, trial in machine.room.to_tell():
                self._tell(machine, key, trial)

    def _tell(self, machine: JobMachine, key: TrialKey, trial: Trial) -> None:
        if machine.leader is not None:
            leader = self.machines[machine.leader]
            self.send(machine.id, leader.id, partial(self._hear, leader, machine, key, message(key, trial)))

    def _hear(self, leader: JobMachine, machine: JobMachine, key: TrialKey, told: AttemptTold) -> None:
        assert leader.foreman is not None
        if not leader.leads:
            return
        heard = leader.foreman.told(self.now, self.wall, machine.id, told)
        record = leader.foreman.records.get(key[0])
        self.invariants.answered(record, key[1], told, heard.fenced)
        self.perform(leader, heard.effects)
        seq = told.told.seq
        answer = partial(self._told, machine, key, seq, heard.fenced, heard.kept)
        self.then(leader, lambda: self.send(leader.id, machine.id, answer))

    def _told(self, machine: JobMachine, key: TrialKey, seq: int, fenced: bool, kept: bool) -> None:
        trial = machine.room.trials.get(key)
        if trial is None:
            return
        if fenced:
            machine.room.stop(self.now, key, "was replaced")
        trial.heard = max(trial.heard, seq)
        trial.kept |= kept

    def _copy_checkpoint(self, machine: JobMachine) -> None:
        key = machine.room.running
        assert key is not None
        others = [each for each in self.up() if each is not machine and self.network.is_open(each.id, machine.id)]
        if others and self.rng.random() < 0.8:
            trial, other = machine.room.trials[key], self.rng.choice(others)
            self.clock.at(self.now + 0.3, self._checkpoint_copied, machine, machine.run, trial, trial.saved, other.id)

    def _checkpoint_copied(self, machine: JobMachine, run: int, trial: Trial, step: int, node: NodeId) -> None:
        if machine.run == run and not trial.told.is_end:
            trial.say(self.now, checkpoint=Checkpoint(step, holders=(node,)))

    # Effects

    def perform(self, machine: JobMachine, effects: list[JobEffect]) -> None:
        """Carry out what a foreman asks for, behind what it asked for before."""
        others = [
            node for node, member in machine.view.members.items() if member.state != "down" and node != machine.id
        ]
        for effect in effects:
            if isinstance(effect, Acknowledge):
                self._others_up[effect.job.id] = bool(others)
            elif isinstance(effect, Order) and machine.foreman is not None:
                known = machine.foreman.records.values()
                self.invariants.decided(machine.promised, effect.job, effect.attempt, known)
        machine.effects.extend(effects)
        self._carry_out(machine)

    def then(self, machine: JobMachine, action: Callable[[], object]) -> None:
        """Once everything before is done."""
        machine.effects.append(action)
        self._carry_out(machine)

    def _carry_out(self, machine: JobMachine) -> None:
        while machine.effects and machine.writing is None and not machine.frozen:
            effect = machine.effects.popleft()
            if callable(effect):
                effect()
                continue
            match effect:
                case Save():
                    machine.writing = effect
                    delay = self.rng.uniform(*self._disk_s)
                    self.clock.at(self.now + delay, self._written, machine, machine.run)
                case Copy(job, node):
                    self.send(machine.id, node, partial(self._copied, machine, self.machines[node], job))
                case Collect(node):
                    self.send(machine.id, node, partial(self._collect, machine, self.machines[node]))
                case Acknowledge(job):
                    self._acknowledged(machine, job)
                case Decline(job_id):
                    self.people.answer(machine, job_id, False)
                case AskEstimate(job, node):
                    self._estimate(machine, self.machines[node], job)
                case Order(job, attempt):
                    self._order(machine, job, attempt)
                case Stop(job_id, attempt_id, node, why):
                    stop = partial(self.machines[node].room.stop, self.now, (job_id, attempt_id), why)
                    self.send(machine.id, node, stop, busy_s=self.rng.uniform(0.1, 1.5))
                case Serve(job):
                    assert job.result is not None
                    if job.forgotten:
                        raise Violation(f"{machine.id} serves {job.id}, which was forgotten")
                    self.served[machine.id, job.id] = job.result.id
                case Tell():
                    pass
                case Fault(job, error):
                    raise Violation(f"{machine.id} can't follow the record of {job.id}") from error
                case _:
                    assert_never(effect)

    def _written(self, machine: JobMachine, run: int) -> None:
        if run == machine.run and machine.writing is not None:
            self._write(machine, machine.writing)
            machine.writing = None
            self._carry_out(machine)

    def _write(self, machine: JobMachine, save: Save) -> None:
        self.invariants.written(machine.disk.get(save.job.id), save.job)
        machine.disk[save.job.id] = save.job

    def _copied(self, leader: JobMachine, machine: JobMachine, job: Job) -> None:
        if machine.leader != leader.id:
            return
        self._learn(machine, job, leader.id)
        answer = partial(self._with_foreman, leader, "copied", job.id, machine.id, job.stamp)
        self.then(machine, lambda: self.send(machine.id, leader.id, answer))

    def _learn(self, machine: JobMachine, job: Job, sender: NodeId) -> None:
        assert machine.foreman is not None
        self.perform(machine, machine.foreman.learnt(self.now, self.wall, (job,), sender))

    def _collect(self, leader: JobMachine, machine: JobMachine) -> None:
        if machine.leader != leader.id:
            return
        assert machine.foreman is not None
        records = tuple(machine.foreman.records.values())
        learnt = partial(self._with_foreman, leader, "learnt", records, machine.id, whole=True)
        self.then(machine, lambda: self.send(machine.id, leader.id, learnt))

    def _with_foreman(self, machine: JobMachine, method: str, *arguments: object, **named: object) -> None:
        effects = getattr(machine.foreman, method)(self.now, self.wall, *arguments, **named)
        self.perform(machine, effects)

    def _acknowledged(self, machine: JobMachine, job: Job) -> None:
        holders = {each.id for each in self.machines.values() if job.id in each.disk}
        self.invariants.acknowledged(job.id, machine.id, holders, self._others_up[job.id])
        self.people.answer(machine, job.id, True)

    def _estimate(self, leader: JobMachine, machine: JobMachine, job: Job) -> None:
        usd = float(str(job.spec["usd"]))
        answer: Estimate | Refusal = Estimate(node=machine.id, memory_bytes=GIGABYTE, usd=usd, usd_high=usd, steps=10)
        if self.rng.random() < 0.1:
            answer = Refusal("is busy")
        if (short := machine.room.shortage(job)) is not None:
            answer = short
        if machine.is_small and job.spec["large"]:
            answer = Refusal("is too large", shortage=SHORTAGE)
        if job.spec["destiny"] == "unreadable":
            answer = Refusal("no such format", "bad_data", for_good=True)
        back = partial(self._with_foreman, leader, "estimated", job.id, machine.id, answer)
        reply = partial(self.send, machine.id, leader.id, back)
        self.send(leader.id, machine.id, reply, busy_s=self.rng.uniform(0.1, 1.0))
        run = leader.run

        def give_up() -> None:
            if leader.run == run and not leader.frozen:
                self._with_foreman(leader, "estimated", job.id, machine.id, Refusal("no answer"))

        self.clock.at(self.now + ANSWER_S, give_up)

    def _order(self, leader: JobMachine, job: Job, attempt: Attempt) -> None:
        assert leader.foreman is not None
        self.orders += 1
        self.invariants.ordered(leader.promised, leader.disk.get(job.id), job, attempt)
        machine = self.machines[attempt.node]
        self.send(leader.id, machine.id, partial(self._obey, leader, machine, leader.promised, job, attempt))

    def _obey(self, leader: JobMachine, machine: JobMachine, ballot: Ballot, job: Job, attempt: Attempt) -> None:
        refusal: Refusal | None = Refusal("obeys another one")
        if ballot >= machine.promised:
            self._learn(machine, job, leader.id)
            steps = int(str(attempt.spec["steps"]))
            refusal = machine.room.take(self.now, job, attempt, self._start(machine, job), steps)
            if refusal is None and self.rng.random() < 0.03:
                machine.room.let_go(self.now, "memory is short")
        answer = partial(self._with_foreman, leader, "order_answered", job.id, attempt.id, refusal)
        self.then(machine, lambda: self.send(machine.id, leader.id, answer))

    def _start(self, machine: JobMachine, job: Job) -> int:
        checkpoint = job.checkpoint
        holders = () if checkpoint is None else checkpoint.holders
        near = [node for node in holders if node == machine.id or self.network.is_open(node, machine.id)]
        return checkpoint.step if checkpoint is not None and near else 0

    # Messages

    def send(self, sender: NodeId, receiver: NodeId, action: Callable[[], object], busy_s: float = 0.0) -> None:
        """Do `action` at the receiver, should it arrive, and `busy_s` later."""
        if sender == receiver:
            self._deliver(self.machines[receiver], action, busy_s)
        elif self.network.passes(sender, receiver):
            for _ in range(self.network.copies()):
                self._deliver(self.machines[receiver], action, busy_s + self.network.latency())

    def _deliver(self, machine: JobMachine, action: Callable[[], object], delay_s: float) -> None:
        self.clock.at(self.now + delay_s, self._arrive, machine, machine.run, action)

    def _arrive(self, machine: JobMachine, run: int, action: Callable[[], object]) -> None:
        if machine.run != run or machine.foreman is None:
            return
        if machine.frozen:
            machine.mailbox.append(action)
        else:
            action()

    @property
    def wall(self) -> float:
        """Unix seconds."""
        return EPOCH + self.now


def leader_of(world: JobWorld) -> JobMachine:
    """The one coordinator. Raises Violation when there is none or are several."""
    leaders = [machine for machine in world.up() if machine.leads]
    if len(leaders) != 1:
        raise Violation(f"{len(leaders)} machines lead")
    return leaders[0]
