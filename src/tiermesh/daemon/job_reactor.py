"""The one owner of `core.Foreman`: feeds it what happens, carries out what it asks, in order.

submissions, decisions, what nodes tell, views, timer ──> Foreman ──> effects ──> [ queue ] ──> disk, nodes, watchers
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, assert_never

from tiermesh.adapters import clock
from tiermesh.adapters.store import Store
from tiermesh.config import PolicyDocument
from tiermesh.core.attempts import Attempt, Told
from tiermesh.core.codec import decode_value
from tiermesh.core.foreman import Decision, Foreman
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
    Stop,
    Tell,
)
from tiermesh.core.job_rules import JobRules
from tiermesh.core.jobs import Estimate, Job, JobId, job_to_dict
from tiermesh.daemon.job_messenger import Messenger, refusal_of
from tiermesh.daemon.job_queue import JobQueue
from tiermesh.daemon.record_mail import RecordMail
from tiermesh.daemon.records import datasets, record_of
from tiermesh.daemon.told import ballot_of
from tiermesh.daemon.watchers import Watchers
from tiermesh.errors import NotFound, StaleOrder, StateUnwritable, TiermeshError, Unavailable, Unreachable
from tiermesh.protocol.job_orders import AttemptTold as AttemptSaid
from tiermesh.protocol.job_orders import HeardReport
from tiermesh.types import NodeId, View

if TYPE_CHECKING:
    from tiermesh.daemon.copies import Copies

log = logging.getLogger(__name__)

ACCEPTED_S = 20.0
"""Until a submission is on two disks; longer, and the one who asks is told to try again."""
UNREAD_LIMIT = 1000
"""Records that can't be read are complained of so often; a neighbour that sends more of them is heard by then."""


class JobReactor:
    """One on every node. `open` when the store is; `close` before it. Where this node does not lead, it keeps copies.

    `on_serve` hears of jobs whose result is to be served, `on_forgotten` of those of which a person wants nothing more.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        store: Store,
        messenger: Messenger,
        copies: Copies,
        view: Callable[[], View],
        leads: Callable[[], bool],
        policy: Callable[[], PolicyDocument],
        on_serve: Callable[[Job], None],
        on_forgotten: Callable[[str], None],
    ) -> None:
        self._me = me
        self._store = store
        self._messenger = messenger
        self._copies = copies
        self._view = view
        self._leads = leads
        self._policy = policy
        self._on_serve = on_serve
        self._on_forgotten = on_forgotten
        self._rules = JobRules()
        self._foreman = Foreman(me, self._rules)
        self._queue = JobQueue(store, self._carry_out, self._unwritten)
        self._mail = RecordMail(messenger, self._copied)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._asked: dict[JobId, list[asyncio.Future[Job]]] = {}
        """Submissions that wait for `Acknowledge` or `Decline`."""
        self._unread: set[str] = set()
        """Ids of records that were sent and can't be read, and were complained of."""
        self.watchers = Watchers()
        self._open = False

    async def open(self) -> None:
        """Read what is known."""
        records = await self._store.records()
        self._rules = self._policy().job_rules()
        self._foreman = Foreman(self._me, self._rules, records)
        self._open = True
        for job in records:
            if not job.is_over:
                self._copies.hold(job.id, datasets(job))
        self.view_changed(self._view())

    async def close(self) -> None:
        """Decide nothing more; what was decided is on disk when it returns."""
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
        await self._queue.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def leads(self) -> bool:
        """Does this node decide?"""
        return self._foreman.leads

    async def accept(self, job: Job) -> Job:
        """As coordinator: on two disks when it returns. Raises `JobExists`, `JobRefused`, `StateUnwritable` or
        `Unavailable`."""
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

    async def decide(self, key: str, decision: Decision) -> Job:
        """As coordinator. Raises `NotFound`, `NotPossibleNow`, `Unavailable`, `StateUnwritable`."""
        job = self.find(key)
        if job.forgotten:
            raise unknown(key)
        self._perform(self._foreman.decide(*_now(), job.id, decision))
        try:
            await self._queue.settled()
        except StateUnwritable as error:
            raise self._of_disk(error, "this is done when it can be") from error
        return self.find(job.id)

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
        await self._queue.settled()
        return answers

    async def learn(self, records: Iterable[Mapping[str, Any]], sender: NodeId, *, whole: bool = False) -> list[str]:
        """Another node's records. On disk when it returns, but those of these ids, which can't be read. Raises
        `StateUnwritable`."""
        jobs, unread = [], []
        for record in records:
            try:
                jobs.append(record_of(record))
            except ValueError as error:
                unread.append(str(record.get("id")))
                self._complain(unread[-1], sender, error)
        for job in jobs:
            if not job.is_over:
                self._copies.hold(job.id, datasets(job))
        self._perform(self._foreman.learnt(*_now(), jobs, sender, whole=whole))
        await self._queue.settled()
        return unread

    def find(self, key: str) -> Job:
        """As this node knows it, by id or name, forgotten or not; of several with one name (two halves of a partition)
        that which is served by it, the later one. Raises `NotFound`."""
        records = self._foreman.records
        job = records.get(JobId(key)) or max(
            (job for job in records.values() if job.name == key),
            key=lambda job: (not job.forgotten, job.submitted_at, job.id),
            default=None,
        )
        if job is None:
            raise unknown(key)
        return self._shown(job)

    def all(self) -> list[Job]:
        """As this node knows them."""
        jobs = sorted(self._foreman.records.values(), key=lambda job: (job.submitted_at, job.id))
        return [self._shown(job) for job in jobs]

    async def records(self, asker: NodeId) -> list[dict[str, object]]:
        """All that this node has on its disk, for the node that it follows. Raises `StaleOrder`."""
        if asker != self._view().coordinator:
            raise StaleOrder("this node follows somebody else")
        told = [job_to_dict(job) for job in self._foreman.records.values()]
        await self._queue.settled()  # what comes meanwhile is not on the disk by then
        return told

    def check_leader(self, sender: NodeId) -> None:
        """Records go to and come from the node that this one follows: another one would promise a submitter what the
        next coordinator does not know. Raises `StaleOrder`."""
        if sender != self._view().coordinator and not self.leads:
            raise StaleOrder("this node follows somebody else")

    def known(self, job: str) -> Job | None:
        """Its record by its id, forgotten or not. None: unknown here."""
        return self._foreman.records.get(JobId(job))

    def is_over(self, job: str) -> bool | None:
        """As `known`."""
        found = self.known(job)
        return None if found is None else found.is_over

    def note(self, job: str, kind: str, text: str) -> None:
        """Something happened around a job; kept where this node leads."""
        if self.leads and JobId(job) in self._foreman.records:
            self._perform(self._foreman.note(*_now(), JobId(job), kind, text))

    def view_changed(self, view: View) -> None:
        """There is a new one, or this node begins or ceases to lead."""
        if not self._open:
            return
        if (rules := self._policy().job_rules()) != self._rules:
            self._rules = rules
            self._perform(self._foreman.set_rules(*_now(), rules))
        self._perform(self._foreman.view_changed(*_now(), view, self._leads()))

    # Within

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Have it done; what gets no answer is asked again by the foreman, if it still matters."""
        task = asyncio.create_task(self._tried(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tried(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (TiermeshError, ValueError) as error:
            log.debug("%s: %s", getattr(work, "__name__", "a job"), error)
        except Exception:
            log.exception("%s failed", getattr(work, "__name__", "a job"))

    def _complain(self, job: str, sender: NodeId, error: ValueError) -> None:
        """Once of each: it is sent again and again."""
        if job not in self._unread and len(self._unread) < UNREAD_LIMIT:
            self._unread.add(job)
            log.error("the record of job %.40r that node %s sent can't be read: %s", job, sender[:8], error)

    def _shown(self, job: Job) -> Job:
        """With why it waits."""
        if not self.leads or job.is_over:
            return job
        why = self._foreman.why(job.id)
        return job if why == job.reason else replace(job, course=replace(job.course, reason=why))

    def _perform(self, effects: list[JobEffect]) -> None:
        self._queue.put(effects)
        self._schedule()

    def _unwritten(self, error: StateUnwritable) -> None:
        error = self._of_disk(error, "the job is taken when it can be; sent again with its id it is the same job")
        for future in [each for some in self._asked.values() for each in some]:
            if not future.done():
                future.set_exception(error)

    def _of_disk(self, error: StateUnwritable, then: str) -> StateUnwritable:
        """For whoever asked for something, of any node."""
        me = self._view().members.get(self._me)
        name = "this node" if me is None else me.status.name
        return StateUnwritable(f"{name}, which coordinates, writes nothing down just now; {then}: {error}")

    def _carry_out(self, effect: JobEffect) -> None:
        match effect:
            case Save():
                pass
            case Copy(job, node) if self._mail.post(job, node):
                self.start(self._mail.send(node))
            case Copy():
                pass
            case Acknowledge(job):
                self._answer(job.id, job)
            case Decline(key, error):
                self._answer(key, error)
            case AskEstimate(job, node):
                self.start(self._ask_estimate(job, node))
            case Order(job, attempt):
                self.start(self._order(job, attempt))
            case Stop(key, attempt_id, node, why):
                self.start(self._messenger.stop(key, attempt_id, node, why))
            case Collect(node):
                self.start(self._collect(node))
            case Serve(job):
                self._on_serve(job)
            case Tell(job):
                self._tell(job)
            case Fault(job, error):
                log.error("nothing is done about job %s (%s) as its record is", job.name, job.id, exc_info=error)
            case _:
                assert_never(effect)

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
        self.watchers.tell(job.id)
        if job.is_over:
            self._copies.over(job.id)
        if job.forgotten:
            self._copies.forget_result(job.id)
            self._on_forgotten(job.id)

    def _copied(self, job: Job, node: NodeId) -> None:
        self._perform(self._foreman.copied(*_now(), job.id, node, job.stamp))

    async def _ask_estimate(self, job: Job, node: NodeId) -> None:
        try:
            answer: Estimate | Refusal = await self._messenger.estimate(job, node)
        except (TiermeshError, ValueError) as error:
            answer = refusal_of(error)
        self._perform(self._foreman.estimated(*_now(), job.id, node, answer))

    async def _order(self, job: Job, attempt: Attempt) -> None:
        try:
            told = await self._messenger.order(job, attempt)
        except Unreachable:
            return  # it may have been heard; it is given again
        except (TiermeshError, ValueError) as error:
            self._perform(self._foreman.order_answered(*_now(), job.id, attempt.id, refusal_of(error)))
            return
        self._perform(self._foreman.order_answered(*_now(), job.id, attempt.id, None))
        if self.leads:
            said = AttemptTold(job.id, attempt.number, attempt.ballot, told)
            self._perform(self._foreman.told(*_now(), attempt.node, said).effects)

    async def _collect(self, node: NodeId) -> None:
        if node != self._me:
            await self.learn(await self._messenger.collect(node), node, whole=True)

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


def unknown(key: str) -> NotFound:
    """For who asks for a job that there is not."""
    return NotFound(f"no job is called {key!r}; `mesh jobs` lists them", param="job")


def _now() -> tuple[float, float]:
    return clock.now(), time.time()
