"""The folders of runs whose job is over: when they go, what must be sure before, and who says so."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.adapters.test_run_folders import make_run
from tests.daemon.copying_mesh import new_job
from tests.daemon.still_mesh import until

from tiermesh.adapters.blobs import Blobs
from tiermesh.adapters.run_copy import folder_manifest
from tiermesh.adapters.run_folders import RunFolders
from tiermesh.core.attempts import Attempt, Told
from tiermesh.core.jobs import Asked, Course, Dataset, Job, JobId, join
from tiermesh.core.run_ends import COMPLETED_KEPT_S, LOW_BYTES, OTHERS_KEPT_S
from tiermesh.daemon import run_keeping
from tiermesh.daemon.records import record_of
from tiermesh.daemon.run_keeping import RunKeeping
from tiermesh.errors import NotFound
from tiermesh.protocol.run_folder import RunFolder
from tiermesh.types import NO_BALLOT, Ballot, JobState, NodeId, View

ME, LEADER = NodeId("a" * 32), NodeId("b" * 32)


@dataclass
class Node:
    """One, with what it knows and whom it may ask; the coordinator's records are `there`."""

    folder: Path
    leads: bool = True
    training: str = ""
    here: dict[str, Job] = field(default_factory=dict)
    there: dict[str, Job] = field(default_factory=dict)
    asked: int = 0

    def __post_init__(self) -> None:
        self.blobs = Blobs(self.folder / "data")
        self.blobs.open()
        me = cast(Any, self)
        self.keeping = RunKeeping(
            me=ME,
            folders=RunFolders(self.folder / "jobs"),
            blobs=self.blobs,
            attempts=me,
            reactor=me,
            messenger=me,
            view=lambda: View(Ballot(1, LEADER), 1, ME if self.leads else LEADER, {}),
        )

    def known(self, job: str) -> Job | None:
        return self.here.get(job)

    def is_over(self, job: str) -> bool | None:
        return None if job not in self.here else self.here[job].is_over

    async def learn(self, records: Iterable[Mapping[str, Any]], sender: NodeId) -> None:
        assert sender == LEADER
        for job in map(record_of, records):
            self.here[job.id] = join(self.here[job.id], job) if job.id in self.here else job

    async def ask_leader(self, what: str, body: Mapping[str, Any]) -> object:
        assert what == "ended"
        self.asked += 1
        known = [self.there[job] for job in body["jobs"] if job in self.there]
        return {
            "over": [job.id for job in known if job.is_over],
            "forgotten": [job.id for job in known if job.forgotten],
        }

    async def job_of_leader(self, what: str, body: Mapping[str, Any]) -> Job:
        assert what == "find"
        return self.there[body["job"]]

    def run(self, job: Job) -> RunFolder:
        return make_run(self.folder / "jobs", job.id, 1)

    async def over(self, state: JobState, ago_s: float, node: NodeId = ME, **facts: Any) -> tuple[Job, RunFolder]:
        """A job that ended so long ago, and its run here; of one that is completed the result is kept here."""
        bare = Job(id=JobId(new_job()), asked=Asked(name="faq", spec={}, data=Dataset("0" * 64, "faq")))
        run = self.run(bare)
        manifest = await folder_manifest(self.blobs, run.result, lambda digest: self.blobs.pin(bare.id, [digest]))
        artifact = await self.blobs.put_whole(manifest.encoded())
        told = Told(seq=1, state="completed", artifact=artifact) if state == "completed" else Told(seq=1)
        attempt = Attempt(number=1, ballot=NO_BALLOT, node=node, spec={}, told=told)
        course = Course(state=state, ended_at=time.time() - ago_s)
        job = replace(bare, course=course, attempts=(attempt,), **facts)
        self.here[job.id] = job
        return job, run


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


DAY, MONTH = COMPLETED_KEPT_S, OTHERS_KEPT_S


async def test_after_its_time_a_run_keeps_what_it_came_to(node: Node) -> None:
    _, old = await node.over("completed", DAY + 60)
    _, young = await node.over("completed", DAY - 60)
    _, cancelled = await node.over("cancelled", MONTH - 60)
    _, failed = await node.over("failed", MONTH + 60)
    await node.keeping._tidy()
    assert [run.checkpoints.exists() for run in (old, young, cancelled, failed)] == [False, True, True, False]
    assert all(run.result.exists() and run.events.exists() and run.log.exists() for run in (old, failed))


async def test_a_full_disk_ends_the_time_of_completed_ones_early(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = await node.over("completed", 300)
    _, second = await node.over("completed", 200)
    _, third = await node.over("completed", 100)
    _, cancelled = await node.over("cancelled", 400)
    free = iter((0, LOW_BYTES - 1, LOW_BYTES))
    monkeypatch.setattr(RunFolders, "free_bytes", lambda _: next(free))
    await node.keeping._tidy()
    assert [run.checkpoints.exists() for run in (first, second, third, cancelled)] == [False, False, True, True]


@pytest.mark.parametrize("spoilt", [True, False])
async def test_nothing_goes_while_the_result_is_not_whole_in_the_store(node: Node, spoilt: bool) -> None:
    job, run = await node.over("completed", 100 * DAY)
    for digest in node.blobs.pinned(job.id):
        path = node.blobs.find(digest)
        assert path is not None
        path.unlink()
        if spoilt:
            path.write_text("something else")
    await node.keeping._tidy()
    assert run.checkpoints.exists()


async def test_another_nodes_result_is_not_looked_for_here(node: Node) -> None:
    _, run = await node.over("completed", DAY + 60, node=LEADER)
    for path in (node.folder / "data").iterdir():
        if path.is_file():
            path.unlink()
    await node.keeping._tidy()
    assert not run.checkpoints.exists()


async def test_the_slot_is_left_alone_whatever_the_record_says(node: Node) -> None:
    for forgotten in (False, True):
        job, run = await node.over("cancelled", 100 * MONTH, forgotten=forgotten)
        node.training = job.id
        await node.keeping._tidy()
        assert run.checkpoints.exists()
        node.training = ""
        await node.keeping._tidy()
        assert not run.checkpoints.exists()


async def test_what_nobody_knows_stays(node: Node) -> None:
    job, run = await node.over("completed", 100 * MONTH)
    del node.here[job.id]
    node.leads = False
    await node.keeping._tidy()
    assert run.checkpoints.exists()


async def test_what_a_person_forgets_goes_at_once(node: Node) -> None:
    job, run = await node.over("completed", 60)
    node.keeping.forget(job.id)
    await until(lambda: not run.path.parent.exists())
    await node.keeping.close()


async def test_a_node_that_was_away_then_hears_of_it_from_the_coordinator(node: Node) -> None:
    """Not every node has every record, and those that it has may be old."""
    node.leads = False
    gone, gone_run = await node.over("completed", 60)
    over, over_run = await node.over("failed", MONTH + 60)
    kept, kept_run = await node.over("completed", 60)
    node.there = {gone.id: replace(gone, forgotten=True), over.id: over, kept.id: kept}
    node.here[over.id] = replace(over, course=Course(state="running"))
    del node.here[gone.id]
    await node.keeping._tidy()
    assert [run.checkpoints.exists() for run in (gone_run, over_run, kept_run)] == [False, False, True]
    assert (gone_run.path.exists(), node.here[over.id].state, node.asked) == (False, "failed", 1)


async def test_one_that_can_not_be_removed_holds_up_no_other(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, _ = await node.over("completed", DAY + 90)
    _, gone_run = await node.over("cancelled", 1, forgotten=True)
    _, run = await node.over("completed", DAY + 60)
    lighten = RunFolders.lighten

    def failing(folders: RunFolders, job: str) -> bool:
        if job == stuck.id:
            raise OSError(1, "Operation not permitted")
        return lighten(folders, job)

    monkeypatch.setattr(RunFolders, "lighten", failing)
    with pytest.raises(OSError, match="not permitted"):
        await node.keeping._tidy()
    assert (run.checkpoints.exists(), gone_run.path.exists()) == (False, False)


async def test_without_a_coordinator_what_is_known_here_counts(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(*_: object) -> object:
        raise NotFound("nothing at /mesh/v1/jobs/ended")

    monkeypatch.setattr(node, "ask_leader", nobody)
    node.leads = False
    _, run = await node.over("completed", DAY + 60)
    await node.keeping._tidy()
    assert not run.checkpoints.exists()


async def test_a_disk_that_fails_for_a_while_stops_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_keeping, "LOOK_S", 0.02)
    _, run = await node.over("completed", DAY + 60)
    jobs, failures = RunFolders.jobs, iter((OSError(5, "Input/output error"),) * 3)

    def failing(folders: RunFolders) -> list[str]:
        if (failure := next(failures, None)) is not None:
            raise failure
        return jobs(folders)

    monkeypatch.setattr(RunFolders, "jobs", failing)
    node.keeping.start()
    await until(lambda: not run.checkpoints.exists())
    await node.keeping.close()
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
