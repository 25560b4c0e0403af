"""A coordinator on a stage: members that come and go, and answers to what it asks."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from tiermesh.core.attempts import Attempt, Told
from tiermesh.core.foreman import Foreman
from tiermesh.core.job_effects import AskEstimate, AttemptTold, Collect, Copy, Heard, JobEffect, Order, Refusal
from tiermesh.core.job_rules import JobRules
from tiermesh.core.jobs import Asked, Dataset, Estimate, Job, JobId
from tiermesh.types import Ballot, Member, MemberState, NodeId, SessionId, Status, View

ME, A, B = (NodeId(letter * 32) for letter in "mab")
BALLOT = Ballot(5, ME)
WALL = 1_000_000.0
SPEC: dict[str, object] = {"micro_batch_size": 4, "learning_rate": 1e-4, "num_epochs": 3}

Kind = TypeVar("Kind", bound=object)


def job(name: str = "J1", **changes: object) -> Job:
    """As a submitter's node makes it."""
    asked = Asked(name="faq", spec=SPEC, data=Dataset("a" * 64, "faq.jsonl"))
    return Job(id=JobId(name), asked=replace(asked, **changes))  # type: ignore[arg-type]


def of(kind: type[Kind], effects: list[JobEffect]) -> list[Kind]:
    """The effects of one kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


class Stage:
    """Time stands still unless it is told to pass. Members take copies, answer estimates and have no records."""

    def __init__(self, *others: NodeId, rules: JobRules | None = None, records: tuple[Job, ...] = ()) -> None:
        self.now = 100.0
        self.foreman = Foreman(ME, rules or JobRules(), records)
        self.members = {
            node: Member(node, SessionId("1"), Status(f"node-{node[0]}", ()), joined)
            for joined, node in enumerate((ME, *others))
        }
        self.usd: float | None = 0.0
        self.effects: list[JobEffect] = []
        """All since the last look at them."""

    def lead(self, ballot: Ballot = BALLOT) -> Stage:
        """Begin to lead, or lead on with other members."""
        self.take(self.foreman.view_changed(*self._times, View(ballot, 1, ME, dict(self.members)), True))
        return self

    def member(self, node: NodeId, state: MemberState = "up", session: str = "1") -> None:
        """A member is like this now."""
        self.members[node] = replace(self.members[node], state=state, session=SessionId(session))
        self.lead()

    def take(self, effects: list[JobEffect]) -> None:
        """Carry them out, with all that follows."""
        self.effects += effects
        for effect in effects:
            match effect:
                case Copy(copied, node):
                    self.take(self.foreman.copied(*self._times, copied.id, node, copied.stamp))
                case Collect(node):
                    self.take(self.foreman.learnt(*self._times, (), node, whole=True))
                case AskEstimate(asked, node):
                    estimate = Estimate(node=node, memory_bytes=1, usd=self.usd, usd_high=self.usd, steps=12)
                    self.take(self.foreman.estimated(*self._times, asked.id, node, estimate))

    def submit(self, name: str = "J1", **changes: object) -> Job:
        """Somebody submits a job."""
        self.take(self.foreman.submit(*self._times, job(name, **changes)))
        return self.job(name)

    def job(self, name: str = "J1") -> Job:
        """Its record now."""
        return self.foreman.records[JobId(name)]

    def at_work(self, name: str = "J1") -> Attempt:
        """The attempt that runs now."""
        attempt = self.job(name).current
        assert attempt is not None, "nothing runs"
        return attempt

    def says(self, seq: int, name: str = "J1", of_attempt: Attempt | None = None, **changes: object) -> Heard:
        """The node of an attempt speaks of it; of the current one, where nothing else is said."""
        attempt = of_attempt or self.at_work(name)
        told = replace(Told(seq=seq), **changes)  # type: ignore[arg-type]
        message = AttemptTold(JobId(name), attempt.number, attempt.ballot, told)
        heard = self.foreman.told(*self._times, attempt.node, message)
        self.take(heard.effects)
        return heard

    def refuses(self, reason: str, name: str = "J1", for_good: bool = False) -> None:
        """The node of the current attempt won't take it."""
        attempt, refusal = self.at_work(name), Refusal(reason, "bad_data", for_good)
        self.take(self.foreman.order_answered(*self._times, JobId(name), attempt.id, refusal))

    def decide(self, decision: str, name: str = "J1") -> None:
        """A person decides."""
        self.take(self.foreman.decide(*self._times, JobId(name), decision))  # type: ignore[arg-type]

    def passes(self, seconds: float) -> None:
        """Time passes, and the foreman's clock ticks."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + 0.5, until)
            self.take(self.foreman.tick(*self._times))

    def seen(self, kind: type[Kind]) -> list[Kind]:
        """Effects of one kind since the last look; all others are forgotten too."""
        effects, self.effects = self.effects, []
        return of(kind, effects)

    def ordered_on(self) -> list[NodeId]:
        """Where attempts were ordered since the last look."""
        return [order.attempt.node for order in self.seen(Order)]

    @property
    def _times(self) -> tuple[float, float]:
        return self.now, WALL + self.now
