"""One simulated computer that leads jobs or trains: a disk, the real `core.foreman.Foreman`, and a training slot that
only pretends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from tiermesh.core.admission import GIB, Machine, judge_free
from tiermesh.core.attempts import PREPARING, Attempt, AttemptId, Checkpoint, Told
from tiermesh.core.foreman import Foreman
from tiermesh.core.job_effects import AttemptTold, JobEffect, Refusal, Save
from tiermesh.core.jobs import Job, JobId
from tiermesh.sim.machine import NO_SESSION
from tiermesh.types import NO_BALLOT, Ballot, NodeId, SessionId, View

SAVE_EVERY = 3
"""Steps between checkpoints."""
FREE_BYTES = 16 * GIB
"""Of a machine on which nothing else runs."""

TrialKey = tuple[JobId, AttemptId]


@dataclass(slots=True)
class Trial:
    """An attempt as its node has it on disk. `told` is what would be said of it."""

    attempt: Attempt
    told: Told
    steps: int
    saved: int = 0
    heard: int = 0
    """The highest sequence that a coordinator has heard."""
    kept: bool = False
    """Is its end safe?"""

    def say(self, now: float, **changes: object) -> None:
        """Something is new: the sequence rises, also over restarts."""
        seq = max(self.told.seq + 1, int(now * 1000))
        self.told = replace(self.told, seq=seq, **changes)  # type: ignore[arg-type]


def fate(spec: Mapping[str, object], step: int, steps: int) -> dict[str, object] | None:
    """What happens at this step of a run with such a spec: nothing, or its end."""
    match spec["destiny"]:
        case "memory" if step >= 2 and int(str(spec["micro_batch_size"])) > 1:
            return {"state": "failed", "failure": "out_of_memory", "reason": "no memory"}
        case "no memory ever" if step >= 1:
            return {"state": "failed", "failure": "out_of_memory", "reason": "no memory"}
        case "rate" if step >= 2 and float(str(spec["learning_rate"])) > 2e-5:
            return {"state": "failed", "failure": "non_finite", "reason": "NaN"}
        case "hopeless" if step >= 1:
            return {"state": "failed", "failure": "unexplained", "reason": "crashed"}
        case "bad data":
            return {"state": "failed", "failure": "bad_data", "reason": "no records"}
        case "falls over" if step >= 1:
            return {"state": "stopped", "reason": "somebody killed it"}
    if step < steps:
        return None
    is_good = spec["destiny"] != "learns slowly" or int(str(spec["num_epochs"])) >= 12
    return {"state": "completed", "result": {"loss": 1.0 if is_good else 9.0}, "artifact": "result"}


GOOD = frozenset({"fine", "memory", "rate", "learns slowly"})
"""Destinies that end well."""
DESTINIES = (*sorted(GOOD), "no memory ever", "hopeless", "bad data", "falls over")


@dataclass(slots=True)
class Room:
    """The training slot and what it keeps on disk."""

    trials: dict[TrialKey, Trial] = field(default_factory=dict)
    running: TrialKey | None = None
    free_bytes: int = FREE_BYTES
    """That other programs leave."""

    def take(self, now: float, job: Job, attempt: Attempt, start: int, steps: int) -> Refusal | None:
        """An order; the same one twice is one attempt."""
        key = job.id, attempt.id
        if self.running == key:
            return None
        if self.running is not None:
            return Refusal("trains something else")
        if any(known == job.id and later > attempt.id for known, later in self.trials):
            return Refusal("was replaced")
        trial = self.trials.get(key)
        if trial is not None and trial.told.is_end:
            trial.kept = False  # whoever orders it does not know
            return None
        if (short := self.shortage(job)) is not None:
            return short
        if trial is None:
            trial = self.trials[key] = Trial(attempt, Told(step=start), steps, saved=start)
        trial.say(now, state="running", phase=PREPARING, reason="", steps=steps, step=trial.saved)
        self.running = key
        return None

    def shortage(self, job: Job) -> Refusal | None:
        """Of memory, for what is to begin now."""
        found = judge_free(job.memory_bytes or 0, Machine(None, self.free_bytes))
        return None if found.verdict == "fits" else Refusal(f"it {found.reason}")

    def stop(self, now: float, key: TrialKey, reason: str) -> None:
        """After a checkpoint."""
        if self.running == key:
            trial = self.trials[key]
            trial.saved = trial.told.step
            trial.say(now, state="stopped", reason=reason, checkpoint=Checkpoint(trial.saved))
            self.running = None

    def let_go(self, now: float, reason: str) -> None:
        """What was just taken can't begin after all."""
        if self.running is not None and self.trials[self.running].told.phase != "train":
            self.trials[self.running].say(now, state="stopped", phase=PREPARING, reason=reason)
            self.running = None

    def train(self, now: float) -> bool:
        """One step. True when a checkpoint was written."""
        if self.running is None:
            return False
        trial = self.trials[self.running]
        step = trial.told.step + 1
        trial.say(now, step=step, phase="train")
        if (end := fate(trial.attempt.spec, step, trial.steps)) is not None:
            trial.say(now, **end)
            self.running = None
            return False
        if step % SAVE_EVERY == 0:
            trial.saved = step
            trial.say(now, checkpoint=Checkpoint(step))
            return True
        return False

    def fall(self) -> None:
        """The machine lost its power: what was not saved is gone."""
        if self.running is not None:
            trial = self.trials[self.running]
            trial.told = replace(trial.told, state="stopped", phase="", step=trial.saved, reason="its node ended")
            self.running = None

    def to_tell(self) -> list[tuple[TrialKey, Trial]]:
        """What runs, what has ended and nobody has heard of, and what was stopped."""
        return [
            (key, trial)
            for key, trial in self.trials.items()
            if not trial.kept and (key == self.running or trial.told.is_end or trial.heard < trial.told.seq)
        ]


@dataclass(slots=True)
class JobMachine:
    """A computer, on or off."""

    id: NodeId
    disk: dict[JobId, Job] = field(default_factory=dict)
    room: Room = field(default_factory=Room)
    promised: Ballot = NO_BALLOT
    """Persisted before it is shown, as the election does."""
    foreman: Foreman | None = None
    session: SessionId = NO_SESSION
    run: int = 0
    leads: bool = False
    crowned_at: float = 0.0
    leader: NodeId | None = None
    draining: bool = False
    frozen: bool = False
    trains_frozen: bool = False
    """Does its worker go on while its daemon is frozen?"""
    gone: bool = False
    """Never to come back."""
    is_small: bool = False
    """Too small for large jobs, which nobody knows before it is asked to try one."""
    view: View = field(default_factory=View)
    """The one that it published last."""
    mailbox: list[Callable[[], object]] = field(default_factory=list)
    effects: deque[JobEffect | Callable[[], object]] = field(default_factory=deque)
    """A function is to be called when what comes before it is done."""
    writing: Save | None = None

    @property
    def is_up(self) -> bool:
        return self.foreman is not None


def message(key: TrialKey, trial: Trial) -> AttemptTold:
    """What is said of a trial."""
    job, (number, ballot) = key
    return AttemptTold(job, number, ballot, trial.told)
