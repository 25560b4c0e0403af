"""The one owner of `core.Foreman`: feeds it what happens, carries out what it asks, in order; and, on whatever node it
is asked, the way to the one that coordinates.

    requests, what nodes tell, views, timer ──> Foreman ──> effects ──> [ queue ] ──> disk, other nodes, watchers

The queue exists for one rule: what follows a `Save` waits for it. What has gathered meanwhile is saved in one go.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from tiermesh.adapters import clock
from tiermesh.adapters.peers import ASK_S, Peers
from tiermesh.adapters.store import Store
from tiermesh.config import PolicyDocument
from tiermesh.core.codec import decode_value
from tiermesh.core.foreman import Foreman
from tiermesh.core.job_effects import (
    Acknowledge,
    AskEstimate,
    AttemptTold,
    Collect,
    Copy,
    Decline,
    JobEffect,
    Order,
    Refusal,
    Save,
    Serve,
    Stop,
    Tell,
)
from tiermesh.core.job_rules import ESTIMATE_S, JobRules
from tiermesh.core.jobs import Attempt, AttemptId, Estimate, Job, JobId, Told, job_from_dict, job_to_dict
from tiermesh.daemon.attempts import ballot_of
from tiermesh.daemon.job_reports import report_of
from tiermesh.errors import (
    DataUnusable,
    InvalidInput,
    InvalidSpec,
    JobExists,
    JobRefused,
    NotFound,
    NotPossibleNow,
    SlotTaken,
    StaleOrder,
    StateUnwritable,
    TiermeshError,
    Unavailable,
    Unreachable,
)
from tiermesh.protocol.cluster import BallotReport
from tiermesh.protocol.jobs import (
    ATTEMPTS_PATH,
    ESTIMATES_PATH,
    JOBS_PATH,
    STOP_PATH,
    AttemptOrder,
    CheckpointRef,
    DataAsked,
    EstimateTold,
    HeardReport,
    JobReport,
    Record,
    RecordList,
    StopOrder,
    TrainRequest,
    WorkAsked,
)
from tiermesh.protocol.jobs import AttemptTold as AttemptSaid
from tiermesh.types import Ballot, Member, NodeId, View

if TYPE_CHECKING:
    from tiermesh.daemon.copies import Copies
    from tiermesh.daemon.submission import Submissions

log = logging.getLogger(__name__)

Decision = Literal["approve", "optimize", "cancel", "retry"]

ACCEPTED_S = 20.0
"""Until a submission is on two disks; longer, and the one who asks is told to try again."""
ORDER_S = 8.0
"""An order's answer: longer than its node waits to know."""
COLLECT_S = 10.0
"""All records of a node, some megabytes at most."""
UNWRITTEN_S = 1.0
"""Between two tries to write what the disk would not take."""
LOOK_S = 0.5
"""How often a node that does not lead asks how a job is that somebody watches."""
BATCH_BYTES = 1 << 20
"""Of records that are copied at once."""

TYPED: Mapping[str, type[TiermeshError]] = {
    kind.type: kind
    for kind in (
        *(InvalidSpec, DataUnusable, JobExists, NotFound, NotPossibleNow),
        *(JobRefused, SlotTaken, StaleOrder, StateUnwritable),
    )
}
"""Refusals that mean something to whoever asks a peer about jobs."""


class Scheduler:
    """One on every node. `open` when the store is; `close` before it.

    `take`, `stop` and `estimate` are those of this node; `on_serve` hears of jobs whose result is to be served.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        name: str,
        store: Store,
        peers: Peers,
        copies: Copies,
        submissions: Submissions,
        view: Callable[[], View],
        leads: Callable[[], bool],
        policy: Callable[[], PolicyDocument],
        take: Callable[[AttemptOrder], Coroutine[Any, Any, Told]],
        stop: Callable[[StopOrder], None],
        estimate: Callable[[WorkAsked], Coroutine[Any, Any, Estimate]],
        on_serve: Callable[[Job], None] = lambda _: None,
    ) -> None:
        self._me = me
        self._name = name
        self._store = store
        self._peers = peers
        self._copies = copies
        self._submissions = submissions
        self._view = view
        self._leads = leads
        self._policy = policy
        self._take = take
        self._stop = stop
        self._estimate = estimate
        self.on_serve = on_serve
        self._rules = JobRules()
        self._foreman = Foreman(me, self._rules)
        self._queue: list[JobEffect | asyncio.Future[None]] = []
        self._writing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._asked: dict[JobId, list[asyncio.Future[Job]]] = {}
        """Submissions that wait for `Acknowledge` or `Decline`."""
        self._copying: dict[NodeId, dict[JobId, Job]] = {}
        """Records on their way to a node: the newest of each job."""
        self._watchers: dict[JobId, set[asyncio.Event]] = {}
        self._glances: dict[JobId, tuple[float, Job]] = {}
        """What the coordinator said a moment ago, to all who watch here."""
        self._open = False

    async def open(self) -> None:
        """Read what is known."""
        records = await self._store.records()
        self._rules = self._read_rules()
        self._foreman = Foreman(self._me, self._rules, records)
        self._open = True
        for job in records:
            if not job.is_over:
                self._copies.hold(job.id, _datasets(job))
        self.view_changed(self._view())

    async def close(self) -> None:
        """Decide nothing more; what was decided is on disk when it returns."""
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
        if self._writing is not None:
            await asyncio.wait((self._writing,), timeout=ACCEPTED_S)
        for task in (*self._tasks, *((self._writing,) if self._writing else ())):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # For people and programs, on any node

    @property
    def leads(self) -> bool:
        """Does this node decide?"""
        return self._foreman.leads

    async def submit(self, request: TrainRequest, *, submitter: str = "") -> Job:
        """Have a job accepted; the same request twice is one job. On two disks when it returns, if there are two.

        Raises `InvalidSpec`, `DataUnusable`, `JobRefused`, `JobExists` or `Unavailable`.
        """
        job = await self._submissions.job(request, submitter)
        if self.leads:
            accepted = await self.accept(job)
        else:
            body = Record(record=job_to_dict(job)).model_dump()
            accepted = await self._ask_for_job("submit", body, ACCEPTED_S + ASK_S)
        if not accepted.is_over:
            self._copies.hold(accepted.id, _datasets(accepted))
            self._start(self._spread(accepted))
        return accepted

    async def find(self, key: str) -> Job:
        """By id or name: the coordinator's record or, where there is none, this node's. Raises `NotFound`."""
        if not self.leads:
            try:
                return await self._ask_for_job("find", {"job": key})
            except (Unavailable, NotFound) as error:
                log.debug("job %s is looked for here: %s", key, error)
        return self.find_here(key)

    async def glance(self, job: JobId) -> Job:
        """As `find`, for those who look again and again: what another node said is believed for `LOOK_S`."""
        if self.leads:
            return self.find_here(job)
        at, known = self._glances.get(job, (-math.inf, None))
        if known is None or clock.now() > at + LOOK_S:
            for old in [key for key, (since, _) in self._glances.items() if clock.now() > since + LOOK_S]:
                del self._glances[old]
            known = await self.find(job)
            self._glances[job] = clock.now(), known
        return known

    async def all(self) -> list[Job]:
        """The newest last; as `find`."""
        known = {job.id: job for job in self.all_here()}
        if not self.leads:
            try:
                known |= {job.id: job for job in await self._records("list")}
            except Unavailable as error:
                log.debug("jobs are listed from here: %s", error)
        return sorted(known.values(), key=lambda job: (job.submitted_at, job.id))

    async def cancel(self, key: str) -> Job:
        """End it, keeping its last checkpoint. Durable when it returns. Raises as `decide`."""
        return await self.decide(key, "cancel")

    async def decide(self, key: str, decision: Decision) -> Job:
        """What a person wants done. Durable when it returns. Raises `NotFound`, `NotPossibleNow`, `Unavailable`."""
        if self.leads:
            return await self.decide_here(key, decision)
        return await self._ask_for_job("decide", {"job": key, "decision": decision})

    async def watch(self, key: str) -> AsyncIterator[Job]:
        """The job as it is, and again at each change, until it is over."""
        job = await self.find(key)
        yield job
        while not job.is_over:
            await self.changed(job.id)
            found = await self.glance(job.id)
            if found != job:
                job = found
                yield job

    async def changed(self, job: JobId, within_s: float = LOOK_S) -> None:
        """Wait until something may have happened to it, `within_s` at most."""
        news = asyncio.Event()
        self._watchers.setdefault(job, set()).add(news)
        try:
            async with asyncio.timeout(within_s):
                await news.wait()
        except TimeoutError:
            pass
        finally:
            watchers = self._watchers[job]
            watchers.discard(news)
            if not watchers:
                del self._watchers[job]

    def report(self, job: Job, *, brief: bool = False) -> JobReport:
        """For a person or a program; `brief` leaves out what is long."""
        members = [member for member in self._view().members.values() if member.state != "down"]
        served = [m.status.name for m in members if any(model.job == job.id for model in m.status.models)]
        return report_of(job, self.node_name, self._name, served=served, brief=brief)

    def node_name(self, node: NodeId) -> str:
        """As people call it."""
        member = self._view().members.get(node)
        return member.status.name if member is not None else self._name if node == self._me else node[:8]

    def member(self, node: NodeId) -> Member | None:
        """Where it may be reached."""
        return self._view().members.get(node)

    # The peers' doors

    async def accept(self, job: Job) -> Job:
        """As coordinator: on two disks when it returns. Raises `JobExists`, `JobRefused` or `Unavailable`."""
        answer: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(job.id, []).append(answer)
        self._perform(self._foreman.submit(*_now(), job))
        try:
            async with asyncio.timeout(ACCEPTED_S):
                return self._shown(await answer)
        except TimeoutError:
            raise Unavailable("the job could not be written on enough disks; send it again") from None
        finally:
            waiting = self._asked.get(job.id, [])
            if answer in waiting:
                waiting.remove(answer)
            if not waiting:
                self._asked.pop(job.id, None)

    async def decide_here(self, key: str, decision: Decision) -> Job:
        """As coordinator. Raises `NotFound`, `NotPossibleNow`, `Unavailable`."""
        job = self.find_here(key)
        self._perform(self._foreman.decide(*_now(), job.id, decision))
        await self._settled()
        return self.find_here(job.id)

    async def hear(self, node: NodeId, said: Iterable[AttemptSaid]) -> list[HeardReport]:
        """As coordinator: `node` says how its attempts are. On disk when it returns. Raises `Unavailable`."""
        if not self.leads:
            raise Unavailable("this node is not the coordinator just now; try again")
        answers = []
        for each in said:
            made = ballot_of(each.made)
            told = AttemptTold(JobId(each.job), each.attempt, made, decode_value(Told, each.told))
            heard = self._foreman.told(*_now(), node, told)
            self._perform(heard.effects)
            key = {"job": each.job, "attempt": each.attempt, "made": each.made}
            answers.append(HeardReport(**key, fenced=heard.fenced, kept=heard.kept))  # type: ignore[arg-type]
        await self._settled()
        return answers

    async def learn(self, records: Iterable[Mapping[str, Any]], sender: NodeId, *, whole: bool = False) -> None:
        """Another node's records. On disk when it returns. Raises `StateUnwritable`, and ValueError for no record."""
        jobs = [job_from_dict(record) for record in records]
        for job in jobs:
            if not job.is_over:
                self._copies.hold(job.id, _datasets(job))
        self._perform(self._foreman.learnt(*_now(), jobs, sender, whole=whole))
        await self._settled()

    def find_here(self, key: str) -> Job:
        """As this node knows it, by id or name. Raises `NotFound`."""
        records = self._foreman.records
        job = records.get(JobId(key)) or max(
            (job for job in records.values() if job.name == key), key=lambda job: job.submitted_at, default=None
        )
        if job is None:
            raise NotFound(f"no job is called {key!r}; `mesh jobs` lists them", param="job")
        return self._shown(job)

    def all_here(self) -> list[Job]:
        """As this node knows them."""
        jobs = sorted(self._foreman.records.values(), key=lambda job: (job.submitted_at, job.id))
        return [self._shown(job) for job in jobs]

    def records(self) -> list[dict[str, object]]:
        """All that this node knows, for another one."""
        return [job_to_dict(job) for job in self._foreman.records.values()]

    def is_over(self, job: str) -> bool | None:
        """None: unknown here."""
        found = self._foreman.records.get(JobId(job))
        return None if found is None else found.is_over

    def note(self, job: str, kind: str, text: str) -> None:
        """Something happened around a job; kept where this node leads."""
        if self.leads and JobId(job) in self._foreman.records:
            self._perform(self._foreman.note(*_now(), JobId(job), kind, text))

    # What the node tells

    def view_changed(self, view: View) -> None:
        """There is a new one, or this node begins or ceases to lead."""
        if not self._open:
            return
        if (rules := self._read_rules()) != self._rules:
            self._rules = rules
            self._perform(self._foreman.set_rules(*_now(), rules))
        self._perform(self._foreman.view_changed(*_now(), view, self._leads()))

    # Within

    def _read_rules(self) -> JobRules:
        policy = self._policy()
        return JobRules(
            lease_s=policy.jobs.lease_s,
            max_retries=policy.jobs.max_retries,
            replicas=policy.jobs.replicas,
            waiting_limit=policy.jobs.queue_length,
            budget=policy.budget.rule(),
        )

    def _shown(self, job: Job) -> Job:
        """With why it waits."""
        if not self.leads or job.is_over:
            return job
        why = self._foreman.why(job.id)
        return job if why == job.reason else replace(job, course=replace(job.course, reason=why))

    def _perform(self, effects: list[JobEffect]) -> None:
        self._queue += effects
        self._write()
        self._schedule()

    async def _settled(self) -> None:
        """Until all that was decided is on disk and under way. Raises `StateUnwritable`."""
        if not self._queue and self._writing is None:
            return
        here: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(here)
        self._write()
        await here

    def _write(self) -> None:
        if self._writing is None and self._queue:
            self._writing = asyncio.create_task(self._run_queue(), name="jobs")

    async def _run_queue(self) -> None:
        try:
            while self._queue:
                batch, self._queue = self._queue, []
                try:
                    await self._save(each.job for each in batch if isinstance(each, Save))
                except StateUnwritable as error:
                    self._queue = [*self._unwritten(batch, error), *self._queue]
                    await asyncio.sleep(UNWRITTEN_S)
                    continue
                for each in batch:
                    self._carry_out(each)
        finally:
            self._writing = None

    async def _save(self, jobs: Iterable[Job]) -> None:
        if newest := {job.id: job for job in jobs}:
            await self._store.save_records(newest.values())

    def _unwritten(
        self, batch: list[JobEffect | asyncio.Future[None]], error: StateUnwritable
    ) -> list[JobEffect | asyncio.Future[None]]:
        """What is to be tried again. Whoever waits is told: nothing was promised yet."""
        log.error("records of jobs can't be saved, and are tried again: %s", error)
        waiting: list[asyncio.Future[Any]] = [each for each in batch if isinstance(each, asyncio.Future)]
        for future in waiting + [each for some in self._asked.values() for each in some]:
            if not future.done():
                future.set_exception(error)
        return [each for each in batch if not isinstance(each, asyncio.Future)]

    def _carry_out(self, effect: JobEffect | asyncio.Future[None]) -> None:
        match effect:
            case Save():
                pass
            case Copy(job, node):
                self._copy(job, node)
            case Acknowledge(job):
                self._answer(job.id, job)
            case Decline(key, error):
                self._answer(key, error)
            case AskEstimate(job, node):
                self._start(self._ask_estimate(job, node))
            case Order(job, attempt):
                self._start(self._order(job, attempt))
            case Stop(key, attempt_id, node, why):
                self._start(self._order_stop(key, attempt_id, node, why))
            case Collect(node):
                self._start(self._collect(node))
            case Serve(job):
                self._serve(job)
            case Tell(job):
                self._tell(job)
            case asyncio.Future():
                if not effect.done():
                    effect.set_result(None)

    def _answer(self, key: JobId, answer: Job | TiermeshError) -> None:
        if isinstance(answer, Job):
            log.info("job %s (%s) accepted", answer.name, key)
        for future in self._asked.pop(key, []):
            if future.done():
                continue
            if isinstance(answer, Job):
                future.set_result(answer)
            else:
                future.set_exception(answer)

    def _tell(self, job: Job) -> None:
        for news in self._watchers.get(job.id, ()):
            news.set()
        if job.is_over:
            self._copies.over(job.id)

    def _serve(self, job: Job) -> None:
        try:
            self.on_serve(job)
        except Exception:
            log.exception("job %s: its result can't be served", job.name)

    def _copy(self, job: Job, node: NodeId) -> None:
        """One request to a node at a time, with all that has gathered for it."""
        if (waiting := self._copying.get(node)) is not None:
            waiting[job.id] = job
            return
        self._copying[node] = {job.id: job}
        self._start(self._copy_all(node))

    async def _copy_all(self, node: NodeId) -> None:
        waiting = self._copying[node]
        try:
            while waiting:
                sent, size = [], 0
                while waiting and size < BATCH_BYTES:
                    job = waiting.pop(next(iter(waiting)))
                    record = job_to_dict(job)
                    size += len(str(record))
                    sent.append((job, record))
                body = RecordList(records=[record for _, record in sent]).model_dump()
                await self._ask(node, f"{JOBS_PATH}/records", body)
                for job, _ in sent:
                    self._perform(self._foreman.copied(*_now(), job.id, node, job.stamp))
        finally:
            del self._copying[node]

    async def _ask_estimate(self, job: Job, node: NodeId) -> None:
        asked = self._work(job, job.spec)
        try:
            if node == self._me:
                found = await self._estimate(WorkAsked(**asked))
            else:
                body = WorkAsked(**asked).model_dump(mode="json")
                told = await self._ask(node, ESTIMATES_PATH, body, ESTIMATE_S)
                found = decode_value(Estimate, EstimateTold.model_validate(told).estimate)
            answer: Estimate | Refusal = found
        except (TiermeshError, ValueError) as error:
            answer = _refusal(error)
        self._perform(self._foreman.estimated(*_now(), job.id, node, answer))

    async def _order(self, job: Job, attempt: Attempt) -> None:
        order = self._written_order(job, attempt)
        try:
            if attempt.node == self._me:
                told = await self._take(order)
            else:
                body = order.model_dump(mode="json")
                answer = await self._ask(attempt.node, ATTEMPTS_PATH, body, ORDER_S)
                told = decode_value(Told, answer)
        except Unreachable:
            return  # it may have been heard; it is given again
        except (TiermeshError, ValueError) as error:
            self._perform(self._foreman.order_answered(*_now(), job.id, attempt.id, _refusal(error)))
            return
        self._perform(self._foreman.order_answered(*_now(), job.id, attempt.id, None))
        said = AttemptTold(job.id, attempt.number, attempt.ballot, told)
        if self.leads:
            self._perform(self._foreman.told(*_now(), attempt.node, said).effects)

    async def _order_stop(self, job: JobId, attempt: AttemptId, node: NodeId, why: str) -> None:
        number, made = attempt
        order = StopOrder(job=job, attempt=number, made=_ballot(made), ballot=_ballot(self._view().ballot), why=why)
        if node == self._me:
            self._stop(order)
        else:
            await self._ask(node, STOP_PATH, order.model_dump(mode="json"))

    async def _collect(self, node: NodeId) -> None:
        if node == self._me:
            return
        answer = await self._ask(node, f"{JOBS_PATH}/collect", {}, COLLECT_S)
        await self.learn(RecordList.model_validate(answer).records, node, whole=True)

    async def _spread(self, job: Job) -> None:
        """The job's data goes to other nodes as well, and they are named in its record."""
        asked = job.asked
        holders = await self._copies.spread(job.id, _datasets(job), self._rules.replicas, asked.open_data)
        if not set(holders) <= set(job.holders):
            found = replace(job, holders=tuple(sorted({*job.holders, *holders})))
            if self.leads:
                await self.learn([job_to_dict(found)], self._me)
            else:
                await self._ask_leader("records", RecordList(records=[job_to_dict(found)]).model_dump())

    def _work(self, job: Job, spec: Mapping[str, object]) -> dict[str, Any]:
        """What an order and an estimate have in common."""
        holders = [str(each) for each in job.holders]

        def asked(data: Any) -> DataAsked:
            return DataAsked(sha256=data.sha256, name=data.name, size_bytes=data.size_bytes, holders=holders)

        return {
            "job": job.id,
            "name": job.name,
            "spec": dict(spec),
            "data": asked(job.data),
            "eval_data": None if job.eval_data is None else asked(job.eval_data),
            "canary": job.asked.gates.canary,
        }

    def _written_order(self, job: Job, attempt: Attempt) -> AttemptOrder:
        point = job.checkpoint
        checkpoint = None
        if point is not None and point.artifact:
            holders = [str(each) for each in point.holders]
            checkpoint = CheckpointRef(step=point.step, artifact=point.artifact, holders=holders)
        return AttemptOrder(
            **self._work(job, attempt.spec),
            ballot=_ballot(self._view().ballot),
            made=_ballot(attempt.ballot),
            attempt=attempt.number,
            checkpoint=checkpoint,
            open_data=job.asked.open_data,
            checkpoint_replicas=self._policy().jobs.checkpoint_replicas,
            record=job_to_dict(job),
        )

    async def _ask(self, node: NodeId, path: str, body: Mapping[str, object], within_s: float = ASK_S) -> Any:
        member = self.member(node)
        if member is None:
            raise Unreachable(f"node {node[:8]} is no member of the mesh")
        return await self._peers.ask(node, member.status.addresses, path, body, within_s=within_s, typed=TYPED)

    async def _ask_leader(self, what: str, body: Mapping[str, object], within_s: float = ASK_S) -> Any:
        """Raises `Unavailable` while there is none that answers."""
        leader = self._view().coordinator
        if leader is None or leader == self._me:
            raise Unavailable("the mesh has no coordinator just now; try again in a moment")
        return await self._ask(leader, f"{JOBS_PATH}/{what}", body, within_s)

    async def _ask_for_job(self, what: str, body: Mapping[str, object], within_s: float = ASK_S) -> Job:
        answer = await self._ask_leader(what, body, within_s)
        return job_from_dict(Record.model_validate(answer).record)

    async def _records(self, what: str) -> list[Job]:
        answer = await self._ask_leader(what, {})
        return [job_from_dict(record) for record in RecordList.model_validate(answer).records]

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._tried(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tried(self, work: Coroutine[Any, Any, None]) -> None:
        """What gets no answer is asked again by the foreman, if it still matters."""
        try:
            await work
        except (TiermeshError, ValueError) as error:
            log.debug("%s: %s", getattr(work, "__name__", "a job"), error)
        except Exception:
            log.exception("%s failed", getattr(work, "__name__", "a job"))

    def _schedule(self) -> None:
        """One timer, at the foreman's own deadline."""
        if not self._open:
            return
        due = self._foreman.deadline
        if due == self._timer_at and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = due
        if due < math.inf:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - clock.now()), self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self._perform(self._foreman.tick(*_now()))


def _now() -> tuple[float, float]:
    return clock.now(), time.time()


def _ballot(ballot: Ballot) -> BallotReport:
    return BallotReport(term=ballot.term, node_id=ballot.node_id)


def _datasets(job: Job) -> list[Any]:
    return [each for each in (job.data, job.eval_data) if each is not None]


def _refusal(error: Exception) -> Refusal:
    """`for_good` where the job itself is wrong."""
    failure = error.type if isinstance(error, TiermeshError) else None
    return Refusal(str(error), failure, isinstance(error, InvalidInput) and not isinstance(error, NotFound))
