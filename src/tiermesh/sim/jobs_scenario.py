"""One seeded story: people submit jobs to a mesh in which everything goes wrong, until it stops, and all must end."""

from __future__ import annotations

import random
from collections.abc import Callable

from tiermesh.core.foreman import Decision
from tiermesh.core.jobs import Asked, Dataset, Job, JobId
from tiermesh.sim.cables import Cables
from tiermesh.sim.invariants import Violation
from tiermesh.sim.jobs_disks import check_disks, records_on
from tiermesh.sim.jobs_invariants import MAX_USD
from tiermesh.sim.jobs_machine import DESTINIES, FREE_BYTES, GOOD, JobMachine
from tiermesh.sim.jobs_world import JobWorld, leader_of
from tiermesh.sim.network import ROUGH_WIFI, ROUGH_WIRED, WIFI, WIRED
from tiermesh.types import JobState

END_S = 600.0
"""After the last fault every job ends within so long: 20 jobs of half a minute on one machine that is left."""
CHECK_S = 2.0
PEOPLE_S = 50.0
"""So long people submit and cancel."""
FORGET_SHARE = 0.1
"""Of the times that somebody looks at the list of jobs, one is taken off it, or tried to be."""


class JobScenario:
    """Everything follows from `seed`."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.weather, self.rough = rng.choice(((WIRED, ROUGH_WIRED), (WIFI, ROUGH_WIFI)))
        self.world = JobWorld(seed, weather=self.weather, slow_disks=rng.random() < 0.3)
        self.log: list[str] = []
        self.jobs: list[Job] = []
        self.ended_in_s = 0.0
        """From the last fault to the end of the last job."""
        for index in range(rng.randint(1, 5)):
            self.world.add(f"n{index}").is_small = index > 0 and rng.random() < 0.5
        self._cables = Cables(self.world.network, rng, lambda: list(self.world.machines), self._note)
        self._may_lose_one = len(self.world.machines) >= 3 and rng.random() < 0.4
        self._note(f"{len(self.world.machines)} machines")

    def run(self) -> None:
        """Live through it. Raises Violation with all that is needed to see it again."""
        try:
            for machine in self._machines():
                self.world.clock.at(self.rng.uniform(0, 2), self._start, machine)
            self._schedule_people()
            for _ in range(self.rng.randint(1, 3)):
                self._trouble()
                check_disks(self.world)
            self._settle()
            self._judge()
        except (Violation, AssertionError) as error:
            story = "\n  ".join(self.log)
            raise Violation(f"seed {self.seed} at {self.world.now:.3f} s: {error}\n  {story}") from error

    # People

    def _schedule_people(self) -> None:
        rng = self.rng
        for index in range(rng.randint(1, 8)):
            job = self._job(index)
            self.jobs.append(job)
            when = rng.uniform(1, PEOPLE_S / 2)
            self.world.clock.at(when, self.world.people.submit, job)
            if rng.random() < 0.2:
                self.world.clock.at(when + rng.uniform(0, PEOPLE_S / 2), self._cancel, job.id)
        self.world.clock.at(2.0, self._look_at_the_gate)
        self.world.clock.at(5.0, self._look_at_the_list)

    def _job(self, index: int) -> Job:
        rng = self.rng
        destiny = rng.choice(DESTINIES) if rng.random() < 0.5 else "fine"
        spec = {
            "destiny": destiny,
            "steps": rng.choice((1, 4, 10, 30)),
            "usd": rng.choice((0.0, 0.0, 0.0, 3.0, 9.0)),
            "micro_batch_size": 4,
            "learning_rate": 5e-5,
            "num_epochs": 3,
            "large": rng.random() < 0.2,
        }
        asked = Asked(
            name=rng.choice(("faq", f"job-{index}")),
            spec=spec,
            data=Dataset("0" * 64, "faq.jsonl"),
            priority=rng.choice((0, 0, 1)),
            submitter=rng.choice(("ann", "bob")),
        )
        return Job(id=JobId(f"J{index:02}"), asked=asked)

    def _cancel(self, job: JobId) -> None:
        self._note(f"cancel {job}")
        self.world.people.decide(job, "cancel")

    def _look_at_the_gate(self) -> None:
        """A person looks every few seconds, and at what any coordinator shows."""
        self.world.clock.at(self.world.now + self.rng.uniform(2, 6), self._look_at_the_gate)
        for machine in self.world.up():
            assert machine.foreman is not None
            if not machine.leads:
                continue
            for job in list(machine.foreman.records.values()):
                if job.state == "waiting":
                    cheaper: Decision = "approve" if job.spec["destiny"] == "learns slowly" else "optimize"
                    choices: tuple[Decision, ...] = ("approve", "approve", cheaper, "cancel")
                    decision = self.rng.choice(choices)
                    self._note(f"{decision} {job.id}")
                    self.world.people.decide(job.id, decision)

    def _look_at_the_list(self) -> None:
        """Of what any coordinator shows, something is to be forgotten; it may go on still."""
        self.world.clock.at(self.world.now + self.rng.uniform(1, 3), self._look_at_the_list)
        for machine in self.world.up():
            assert machine.foreman is not None
            shown = [job for job in machine.foreman.records.values() if not job.forgotten]
            if machine.leads and shown and self.rng.random() < FORGET_SHARE:
                job = self.rng.choice(shown)
                self._note(f"forget {job.id}")
                self.world.people.decide(job.id, "forget")

    # Faults

    def _trouble(self) -> None:
        rough = self.rng.random() < 0.6
        self._note(f"trouble, {'rough' if rough else 'calm'} weather")
        self.world.network.weather = self.rough if rough else self.weather
        duration_s = self.rng.uniform(5, 40)
        for _ in range(self.rng.randint(1, 10)):
            self.world.clock.at(self.world.now + self.rng.uniform(0, duration_s), self._fault)
        self.world.run(duration_s)
        self.world.network.weather = self.weather

    def _fault(self) -> None:
        faults: tuple[tuple[int, Callable[[], None]], ...] = (
            (5, self._crash),
            (5, self._crash_the_leader),
            (6, self._restart),
            (4, self._freeze),
            (3, self._cables.cut),
            (2, self._cables.cut_one_way),
            (4, self._cables.split),
            (5, self._cables.heal),
            (2, self._drain),
            (4, self._crowd),
            (1, self._crash_all),
            (1, self._lose_a_disk),
            (1, self._unplug),
        )
        weights, actions = zip(*faults, strict=True)
        self.rng.choices(actions, weights)[0]()

    def _crash(self) -> None:
        if up := self.world.up():
            self._fell(self.rng.choice(up))

    def _crash_the_leader(self) -> None:
        for machine in self.world.up():
            if machine.leads:
                self._fell(machine)
                return

    def _crash_all(self) -> None:
        for machine in self.world.up():
            self._fell(machine, always_back=True)

    def _fell(self, machine: JobMachine, always_back: bool = False) -> None:
        self._note(f"crash {machine.id}")
        self.world.crash(machine)
        if always_back or self.rng.random() < 0.6:
            delay_s = self.rng.choice((0.1, 1.0, 4.0, 8.0, 20.0))
            self.world.clock.at(self.world.now + delay_s, self._start, machine)

    def _restart(self) -> None:
        for machine in self._machines():
            self._start(machine)

    def _freeze(self) -> None:
        if up := [machine for machine in self.world.up() if not machine.frozen]:
            machine, trains = self.rng.choice(up), self.rng.random() < 0.5
            duration_s = self.rng.choice((0.5, 3.0, 8.0, 20.0))
            self._note(f"freeze {machine.id} for {duration_s}, its worker {'goes on' if trains else 'too'}")
            self.world.freeze(machine, trains)
            self.world.clock.at(self.world.now + duration_s, self._thaw, machine, machine.run)

    def _thaw(self, machine: JobMachine, run: int) -> None:
        if machine.run == run and machine.frozen:
            self._note(f"thaw {machine.id}")
            self.world.thaw(machine)

    def _drain(self) -> None:
        if up := self.world.up():
            machine = self.rng.choice(up)
            self._note(f"drain {machine.id}")
            machine.draining = True

    def _crowd(self) -> None:
        """Other programs take the memory, of one machine or of all; they give it back in the end at the latest."""
        crowded = self._machines() if self.rng.random() < 0.5 else [self.rng.choice(self._machines())]
        self._note(f"no memory on {', '.join(machine.id for machine in crowded)}")
        for machine in crowded:
            machine.room.free_bytes = 0
        self.world.clock.at(self.world.now + self.rng.choice((2.0, 8.0, 30.0)), self._uncrowd)

    def _uncrowd(self) -> None:
        for machine in self._machines():
            machine.room.free_bytes = FREE_BYTES

    def _lose_a_disk(self) -> None:
        if self._may_lose_one and (up := self.world.up()):
            self._may_lose_one = False
            machine = self.rng.choice(up)
            self._note(f"lose the disk of {machine.id}")
            self.world.crash(machine)
            self.world.wipe(machine)

    def _unplug(self) -> None:
        large = sum(not machine.is_small for machine in self._machines())
        if self._may_lose_one and (up := [each for each in self.world.up() if each.is_small or large > 1]):
            self._may_lose_one = False
            machine = self.rng.choice(up)
            self._note(f"unplug {machine.id} for good")
            self.world.crash(machine)
            machine.gone = True

    # The end

    def _settle(self) -> None:
        """End all faults, and wait until all has come to an end."""
        self._note("quiet")
        world = self.world
        world.network.heal()
        self._uncrowd()
        for machine in self._machines():
            machine.draining = False
            if machine.frozen:
                world.thaw(machine)
            self._start(machine)
        for machine in self._machines():
            if machine.gone:
                world.forget_alone(machine)
        started = world.now
        while not self._all_over():
            if world.now - started > END_S:
                raise Violation("no end: " + "; ".join(self._unfinished()))
            world.run(CHECK_S)
        self.ended_in_s = world.now - started
        world.run(10 * CHECK_S)

    def _all_over(self) -> bool:
        leaders = [machine for machine in self.world.up() if machine.leads]
        if self.world.now < PEOPLE_S or len(leaders) != 1 or not all(self.world.people.answered.values()):
            return False
        assert leaders[0].foreman is not None
        records = leaders[0].foreman.records
        return all(job in records for job in self.world.people.answered) and all(
            job.is_over for job in records.values()
        )

    def _unfinished(self) -> list[str]:
        found = [f"{job} unanswered" for job, answered in self.world.people.answered.items() if not answered]
        for machine in self.world.up():
            assert machine.foreman is not None
            if machine.leads:
                records = machine.foreman.records
                found += [
                    f"{machine.id}: {job.id} {job.state}, {machine.foreman.why(job.id)}"
                    for job in records.values()
                    if not job.is_over
                ]
                found += [f"{machine.id} has lost {job}" for job in self.world.people.answered if job not in records]
        return found

    def _judge(self) -> None:
        """What must be true of the whole, now that nothing happens any more."""
        world = self.world
        check_disks(world)
        leader = leader_of(world)
        assert leader.foreman is not None
        for machine in world.up():
            if machine.room.running is not None:
                raise Violation(f"{machine.id} still trains {machine.room.running}")
        everything = records_on(machine for machine in self._machines() if not machine.gone)
        for job in leader.foreman.records.values():
            self._judge_job(leader, job, everything.get(job.id, job))

    def _judge_job(self, leader: JobMachine, job: Job, known: Job) -> None:
        """`known`: by all together."""
        if known.state != job.state or _result(known) != _result(job):
            raise Violation(f"{leader.id} does not know how {job.id} ended: {job.state}, {known.state}")
        served = self.world.served.get((leader.id, job.id))
        if job.result is not None and served != job.result.id and not job.forgotten:
            raise Violation(f"{job.id} is served from {served}, its result is {job.result.id}")
        if job.state not in self._expected(job):
            raise Violation(f"{job.id}, {job.asked.spec['destiny']}, is {job.state}: {job.reason}")
        self._judge_decisions(job)

    def _judge_decisions(self, job: Job) -> None:
        if job.id in self.world.invariants.cancelled and not job.cancel_asked:
            raise Violation(f"{job.id} was cancelled, and nobody knows")
        if job.id in self.world.invariants.forgotten and not job.forgotten:
            raise Violation(f"{job.id} was forgotten, and nobody knows")

    def _expected(self, job: Job) -> set[JobState]:
        usd, destiny = float(str(job.asked.spec["usd"])), str(job.asked.spec["destiny"])
        if usd > MAX_USD:
            return {"refused", "cancelled"}
        if destiny == "unreadable":
            return {"refused", "cancelled"}
        cancelled: set[JobState] = {"cancelled"} if job.cancel_asked else set()
        return cancelled | ({"completed"} if destiny in GOOD else {"failed"})

    # Small things

    def _start(self, machine: JobMachine) -> None:
        if not machine.is_up and not machine.gone:
            self._note(f"start {machine.id}")
            self.world.start(machine)

    def _machines(self) -> list[JobMachine]:
        return list(self.world.machines.values())

    def _note(self, line: str) -> None:
        self.log.append(f"{self.world.now:8.3f} {line}")


def _result(job: Job) -> object:
    return None if job.result is None else job.result.id
