"""Training on this node, put together: what is kept, the slot, and the way to whoever leads."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tiermesh.adapters.blobs import Blobs
from tiermesh.adapters.estimator import Estimator
from tiermesh.adapters.peers import Peers
from tiermesh.adapters.run_folders import RunFolders
from tiermesh.adapters.sent_files import SentFiles
from tiermesh.adapters.store import Store
from tiermesh.config import DaemonOptions, PolicyDocument
from tiermesh.core.attempts import Checkpoint, Told
from tiermesh.core.jobs import Job
from tiermesh.daemon.appraisal import Appraisal
from tiermesh.daemon.attempts import Attempts
from tiermesh.daemon.copies import Copies
from tiermesh.daemon.data_looks import DataLooks
from tiermesh.daemon.data_spreading import DataSpreading
from tiermesh.daemon.events import JobEvents
from tiermesh.daemon.files import FileDesk
from tiermesh.daemon.groundwork import Groundwork
from tiermesh.daemon.job_desk import JobDesk
from tiermesh.daemon.job_messenger import Messenger
from tiermesh.daemon.job_reactor import JobReactor
from tiermesh.daemon.records import record_of
from tiermesh.daemon.results import Results
from tiermesh.daemon.run_keeping import RunKeeping
from tiermesh.daemon.scheduler import Scheduler
from tiermesh.daemon.submission import Submissions
from tiermesh.daemon.supervisor import Supervisor
from tiermesh.daemon.telling import Telling
from tiermesh.daemon.told import ballot_of, key_of
from tiermesh.errors import InvalidConfig, InvalidInput, StaleOrder
from tiermesh.hardware.memory import read_memory
from tiermesh.protocol.job_orders import AttemptOrder, StopOrder
from tiermesh.types import Ballot, Hardware, NodeId, Policy, View

log = logging.getLogger(__name__)

LEFTOVER_S = 6.0
"""Workers of an earlier daemon save and end within 5 s of its death."""


class TrainingRoom:
    """`open` when the store is; `close` before it. `promised` is the ballot that this node obeys.

    `on_serve` hears of a job whose result is to be served, on the node that leads; `taken` tells why no job may have
    a name.
    """

    def __init__(
        self,
        options: DaemonOptions,
        store: Store,
        peers: Peers,
        *,
        me: NodeId,
        hardware: Hardware,
        view: Callable[[], View],
        leads: Callable[[], bool],
        promised: Callable[[], Ballot],
        ending: Callable[[], bool],
        on_training: Callable[[str], None],
        on_serve: Callable[[Job], None] = lambda _: None,
        taken: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self.ending = ending
        """Is this daemon about to end? Whoever follows a job must let go."""
        self._promised = promised
        self._policy = _PolicyReader(view, options.policy)
        models = _served(model.name for model in options.models)
        folder = options.state_dir / "jobs"
        self.blobs = Blobs(options.state_dir / "data")
        self.copies = Copies(
            me=me,
            blobs=self.blobs,
            peers=peers,
            view=view,
            token=options.token is not None,
            is_over=self._is_over,
            on_copied=self._copied,
        )
        self.groundwork = Groundwork(self.blobs, models, read_memory)
        self._supervisor = Supervisor(options.state_dir, "trainers.json")
        self.attempts = Attempts(
            me=me,
            folder=folder,
            store=store,
            copies=self.copies,
            groundwork=self.groundwork,
            promised=promised,
            supervise=self._supervisor.listing,
            on_news=self._news,
            on_training=on_training,
        )
        self._estimator = Estimator(
            folder=options.state_dir / "estimates",
            node=me,
            declared=options.price,
            hardware=lambda: hardware,
            memory=read_memory,
            is_busy=self._is_busy,
            supervise=self._supervisor.listing,
        )
        self.appraisal = Appraisal(
            folder=folder,
            copies=self.copies,
            groundwork=self.groundwork,
            estimator=self._estimator,
            is_busy=self._is_busy,
        )
        messenger = Messenger(
            me=me,
            peers=peers,
            view=view,
            policy=self._policy,
            take=self.take,
            stop=self.stop,
            estimate=self.appraisal.estimate,
        )
        self.reactor = JobReactor(
            me=me,
            store=store,
            messenger=messenger,
            copies=self.copies,
            view=view,
            leads=leads,
            policy=self._policy,
            on_serve=on_serve,
            on_forgotten=self._forgotten,
        )
        self._keeping = RunKeeping(
            me=me,
            folders=RunFolders(folder),
            blobs=self.blobs,
            attempts=self.attempts,
            reactor=self.reactor,
            messenger=messenger,
            view=view,
        )
        self._spreading = DataSpreading(
            me=me, reactor=self.reactor, messenger=messenger, copies=self.copies, view=view, policy=self._policy
        )
        self.scheduler = Scheduler(
            me=me,
            name=options.name,
            reactor=self.reactor,
            messenger=messenger,
            copies=self.copies,
            spreading=self._spreading,
            submissions=Submissions(
                me=me,
                blobs=self.blobs,
                looks=DataLooks(self.blobs, folder),
                models=models,
                view=view,
                policy=self._policy,
                taken=taken,
            ),
            view=view,
        )
        self._telling = Telling(me=me, attempts=self.attempts, reactor=self.reactor, peers=peers, view=view)
        self.events = JobEvents(me=me, scheduler=self.scheduler, attempts=self.attempts, peers=peers, ending=ending)
        self.results = Results(scheduler=self.scheduler, blobs=self.blobs, peers=peers)
        self.desk = JobDesk(self.scheduler, self.events)
        self.files = FileDesk(
            SentFiles(options.state_dir / "files"),
            self.blobs,
            me=me,
            peers=peers,
            view=view,
            wall=time.time,
            shared=options.token is not None,
            fetcher=self.copies.fetcher,
        )
        self._awaking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Read what an earlier daemon left."""
        await asyncio.to_thread(self.blobs.open)
        await self.files.open()
        await self._keeping.open()
        await self.attempts.open()
        await self.reactor.open()
        self.copies.start()
        self._spreading.start()
        self._keeping.start()
        self._telling.start()
        self._awaking = asyncio.create_task(self._supervisor.outlast(LEFTOVER_S), name="outlast")

    async def take(self, order: AttemptOrder) -> Told:
        """An order, from whoever leads. Raises as `Attempts.take`."""
        self.attempts.check_fence(order)
        if order.record is not None:
            try:
                record_of(order.record)
            except ValueError as error:
                raise InvalidInput(f"record: {error}") from error
            await self.reactor.learn([order.record], NodeId(order.ballot.node_id))
        assert self._awaking is not None, "open() comes first"
        await asyncio.shield(self._awaking)
        return await self.attempts.take(order)

    def stop(self, order: StopOrder) -> None:
        """The attempt is to end. Raises `StaleOrder`."""
        if ballot_of(order.ballot) < self._promised():
            raise StaleOrder(
                f"the order is of ballot {ballot_of(order.ballot)}, and this node obeys {self._promised()}"
            )
        self.attempts.stop(key_of(order), order.why)

    def rest(self, resting: bool) -> None:
        """Take no attempt any more, and let go of the one that runs after a checkpoint; or work again."""
        self.attempts.rest(resting)

    async def drain(self) -> None:
        """Let go of what runs, and say so: somebody else goes on with it."""
        self.attempts.rest(True, "its node ended")
        await self.attempts.idle()
        await self._telling.tell()

    def viewed(self, view: View) -> None:
        """There is a new view."""
        self.reactor.view_changed(view)
        self._telling.wake()

    async def close(self) -> None:
        """Stop after a checkpoint, and say so. May be called without `open`."""
        if self._awaking is not None:
            self._awaking.cancel()
            await asyncio.gather(self._awaking, return_exceptions=True)
        await self.attempts.close()
        await self.appraisal.close()
        await self._estimator.close()
        await self._telling.close()
        await self._spreading.close()
        await self._keeping.close()
        await self.reactor.close()
        await self.copies.close()

    def _is_busy(self) -> bool:
        return bool(self.attempts.training)

    def _is_over(self, job: str) -> bool | None:
        return self.reactor.is_over(job)

    def _copied(self, job: str, attempt: int, checkpoint: Checkpoint) -> None:
        self.attempts.copied(job, attempt, checkpoint)

    def _forgotten(self, job: str) -> None:
        self._keeping.forget(job)

    def _news(self) -> None:
        self._telling.wake()


class _PolicyReader:
    """The policy that holds now, read once for each; the node's own file's until there is one that can be read."""

    def __init__(self, view: Callable[[], View], otherwise: PolicyDocument) -> None:
        self._view = view
        self._policy = Policy()
        self._document = otherwise

    def __call__(self) -> PolicyDocument:
        policy = self._view().policy
        if policy is not self._policy:
            self._policy = policy
            try:
                self._document = PolicyDocument.from_body(policy.body) if policy.body else self._document
            except InvalidConfig as error:
                log.warning("the mesh's policy can't be read: %s", error)
        return self._document


def _served(models: Iterable[str]) -> dict[str, str]:
    """Models by the names that they are served under: a folder's own name, or that of the catalogue."""
    folders = {name: Path(name).expanduser() for name in models}
    return {path.resolve().name if path.is_dir() else name: name for name, path in folders.items()}
