"""What the jobs of the mesh ask of its nodes: of this one by a call, of others at their doors."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from tiermesh.adapters.peer_requests import ASK_S
from tiermesh.adapters.peers import Peers
from tiermesh.config import PolicyDocument
from tiermesh.core.attempts import Attempt, AttemptId, Told
from tiermesh.core.codec import decode_value
from tiermesh.core.job_effects import Refusal, Shortage
from tiermesh.core.job_rules import ESTIMATE_S
from tiermesh.core.jobs import Dataset, Estimate, Job, JobId, job_to_dict
from tiermesh.daemon.records import record_of
from tiermesh.errors import (
    DataUnusable,
    InvalidSpec,
    JobExists,
    JobRefused,
    NotFound,
    NotPossibleNow,
    SlotTaken,
    StaleOrder,
    StateUnwritable,
    TiermeshError,
    TooLarge,
    Unavailable,
    Unreachable,
)
from tiermesh.protocol.cluster import BallotReport
from tiermesh.protocol.job_orders import (
    ATTEMPTS_PATH,
    ESTIMATES_PATH,
    JOBS_PATH,
    STOP_PATH,
    AttemptOrder,
    CheckpointRef,
    DataAsked,
    EstimateTold,
    Record,
    RecordList,
    RecordsKept,
    StopOrder,
    WorkAsked,
)
from tiermesh.protocol.validation import Wire
from tiermesh.types import Ballot, Member, NodeId, View

WireT = TypeVar("WireT", bound=Wire)
T = TypeVar("T")

ORDER_S = 8.0
"""An order's answer: longer than its node waits to know."""
COLLECT_S = 10.0
"""All records of a node, some megabytes at most."""

TYPED: Mapping[str, type[TiermeshError]] = {
    kind.type: kind
    for kind in (
        *(InvalidSpec, DataUnusable, JobExists, NotFound, NotPossibleNow),
        *(JobRefused, SlotTaken, StaleOrder, StateUnwritable),
    )
}
"""Refusals that mean something to whoever asks a peer about jobs."""


class Messenger:
    """One for a node. `take`, `stop` and `estimate` are what this node itself does when it is asked.

    What is asked of other nodes raises `Unreachable` when no answer comes, and ValueError for one that can't be read.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        peers: Peers,
        view: Callable[[], View],
        policy: Callable[[], PolicyDocument],
        take: Callable[[AttemptOrder], Coroutine[Any, Any, Told]],
        stop: Callable[[StopOrder], None],
        estimate: Callable[[WorkAsked], Coroutine[Any, Any, Estimate]],
    ) -> None:
        self._me = me
        self._peers = peers
        self._view = view
        self._policy = policy
        self._take = take
        self._stop = stop
        self._estimate = estimate

    def member(self, node: NodeId) -> Member | None:
        """Where it may be reached."""
        return self._view().members.get(node)

    async def ask(self, node: NodeId, path: str, body: Mapping[str, object], within_s: float = ASK_S) -> Any:
        """Raises what the node says, by its type."""
        member = self.member(node)
        if member is None:
            raise Unreachable(f"node {node[:8]} is no member of the mesh")
        return await self._peers.ask(node, member.status.addresses, path, body, within_s=within_s, typed=TYPED)

    async def ask_leader(self, what: str, body: Mapping[str, object], within_s: float = ASK_S) -> Any:
        """Raises `Unavailable` while there is none that answers."""
        leader = self._view().coordinator
        if leader is None or leader == self._me:
            raise Unavailable("the mesh has no coordinator just now; try again in a moment")
        return await self.ask(leader, f"{JOBS_PATH}/{what}", body, within_s)

    async def job_of_leader(self, what: str, body: Mapping[str, object], within_s: float = ASK_S) -> Job:
        """As `ask_leader`, where the answer is a record."""
        return _read(Record, await self.ask_leader(what, body, within_s), lambda answer: record_of(answer.record))

    async def jobs_of_leader(self) -> list[Job]:
        """All of its records."""
        answer = await self.ask_leader("list", {})
        return _read(RecordList, answer, lambda told: [record_of(record) for record in told.records])

    async def copy(self, node: NodeId, records: Iterable[dict[str, object]]) -> frozenset[str]:
        """Have another node keep these; the ids of those that it can't read."""
        answer = await self.ask(node, f"{JOBS_PATH}/records", RecordList(records=list(records)).model_dump())
        return frozenset(RecordsKept.model_validate(answer).unread)

    async def collect(self, node: NodeId) -> list[dict[str, Any]]:
        """All records of another node."""
        answer = await self.ask(node, f"{JOBS_PATH}/collect", {}, COLLECT_S)
        return RecordList.model_validate(answer).records

    async def estimate(self, job: Job, node: NodeId) -> Estimate:
        """What the job would take there. Raises `TooLarge` where that node can never hold it."""
        asked = WorkAsked(**_work(job, job.spec))
        if node == self._me:
            return await self._estimate(asked)
        answer = await self.ask(node, ESTIMATES_PATH, asked.model_dump(mode="json"), ESTIMATE_S)
        told = EstimateTold.model_validate(answer)
        if (wanted := told.too_large) is not None:
            raise TooLarge(wanted.reason, needs_bytes=wanted.needs_bytes, has_bytes=wanted.has_bytes)
        found: Estimate = decode_value(Estimate, told.estimate)
        return found

    async def order(self, job: Job, attempt: Attempt) -> Told:
        """Have the attempt's node begin, or go on."""
        order = self._order(job, attempt)
        if attempt.node == self._me:
            return await self._take(order)
        told: Told = decode_value(
            Told, await self.ask(attempt.node, ATTEMPTS_PATH, order.model_dump(mode="json"), ORDER_S)
        )
        return told

    async def stop(self, job: JobId, attempt: AttemptId, node: NodeId, why: str) -> None:
        """Have a node end an attempt."""
        number, made = attempt
        order = StopOrder(job=job, attempt=number, made=_ballot(made), ballot=_ballot(self._view().ballot), why=why)
        if node == self._me:
            self._stop(order)
        else:
            await self.ask(node, STOP_PATH, order.model_dump(mode="json"))

    def _order(self, job: Job, attempt: Attempt) -> AttemptOrder:
        point = job.checkpoint
        checkpoint = None
        if point is not None and point.artifact:
            holders = [str(each) for each in point.holders]
            checkpoint = CheckpointRef(step=point.step, artifact=point.artifact, holders=holders)
        return AttemptOrder(
            **_work(job, attempt.spec),
            ballot=_ballot(self._view().ballot),
            made=_ballot(attempt.ballot),
            attempt=attempt.number,
            checkpoint=checkpoint,
            open_data=job.asked.open_data,
            checkpoint_replicas=self._policy().jobs.checkpoint_replicas,
            record=job_to_dict(job),
        )


def refusal_of(error: Exception) -> Refusal:
    """What a node's answer to an order or a question about a job says. `for_good` where it says that the job itself is
    wrong; a 4xx that only says that the request was (of another version, too large, at no such route) is that node's
    affair."""
    failure = error.type if isinstance(error, TiermeshError) else None
    shortage = Shortage(error.needs_bytes, error.has_bytes) if isinstance(error, TooLarge) else None
    return Refusal(str(error), failure, isinstance(error, InvalidSpec | DataUnusable), shortage)


def _work(job: Job, spec: Mapping[str, object]) -> dict[str, Any]:
    """What an order and an estimate have in common."""
    holders = [str(each) for each in job.holders]

    def asked(data: Dataset) -> DataAsked:
        return DataAsked(sha256=data.sha256, name=data.name, size_bytes=data.size_bytes, holders=holders)

    return {
        "job": job.id,
        "name": job.name,
        "spec": dict(spec),
        "data": asked(job.data),
        "eval_data": None if job.eval_data is None else asked(job.eval_data),
        "canary": job.asked.gates.canary,
        "needs_bytes": job.memory_bytes,
    }


def _read(kind: type[WireT], answer: object, read: Callable[[WireT], T]) -> T:
    """The coordinator's answer. Raises `Unavailable` for one that is none."""
    try:
        return read(kind.model_validate(answer))
    except ValueError as error:
        raise Unavailable(f"the coordinator's answer can't be read: {error}") from error


def _ballot(ballot: Ballot) -> BallotReport:
    return BallotReport(term=ballot.term, node_id=ballot.node_id)
