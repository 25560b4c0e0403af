"""A job's data is on as many nodes as it should be, until the job is over, whoever of them goes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.daemon.copying_mesh import LIMIT_S, CopyingMesh, CopyingNode, copying_mesh, digest, new_job
from tests.daemon.still_mesh import until

from tiermesh.config import PolicyDocument
from tiermesh.core.jobs import Asked, Course, Dataset, Job, JobId, join
from tiermesh.core.replicas import lacks_copies
from tiermesh.daemon import data_spreading
from tiermesh.daemon.data_spreading import DataSpreading
from tiermesh.daemon.records import record_of
from tiermesh.types import Ballot, JobState, Member, NodeId, SessionId, Status, View

DATA, MORE = b'{"text": "one"}\n' * 1000, b'{"text": "two"}\n' * 10


@dataclass
class Coordinator:
    """Of a mesh: what it knows, and what it does about data."""

    mesh: CopyingMesh
    name: str
    is_leader: bool = True
    replicas: int = 2
    jobs: dict[str, Job] = field(default_factory=dict)
    looks: int = 0

    def __post_init__(self) -> None:
        me = cast(Any, self)
        policy = PolicyDocument.model_validate({"jobs": {"replicas": self.replicas}})
        self.spreading = DataSpreading(
            me=self.mesh[self.name].id,
            reactor=me,
            messenger=me,
            copies=self.mesh[self.name].copies,
            view=lambda: self.mesh.view,
            policy=lambda: policy,
        )

    @property
    def leads(self) -> bool:
        self.looks += 1
        return self.is_leader

    def all(self) -> list[Job]:
        return list(self.jobs.values())

    async def learn(self, records: Iterable[Mapping[str, Any]], sender: NodeId) -> None:
        for job in map(record_of, records):
            self.jobs[job.id] = join(self.jobs[job.id], job)

    async def submitted(self, at: str, *, state: JobState = "queued", open_data: bool = False) -> Job:
        """A job whose data was sent to this node, and spread from there."""
        node = self.mesh[at]
        for content in (DATA, MORE):
            await node.blobs.put_whole(content)
        data, held_out = (Dataset(digest(content), "faq.jsonl", len(content)) for content in (DATA, MORE))
        asked = Asked(name="faq", spec={}, data=data, eval_data=held_out, open_data=open_data)
        job = Job(id=JobId(new_job()), asked=asked, course=Course(state=state), holders=(node.id,))
        held = await node.copies.spread(job.id, (data, held_out), self.replicas, open_data)
        self.jobs[job.id] = replace(job, holders=held)
        return self.jobs[job.id]

    def having(self, job: Job) -> set[str]:
        """Those of the nodes that keep all of its data."""
        wanted = {digest(DATA), digest(MORE)}
        return {name for name, node in self.mesh.nodes.items() if _keeps(node, job.id, wanted)}


def _keeps(node: CopyingNode, job: str, wanted: set[str]) -> bool:
    return wanted <= node.blobs.pinned(f"{job}.data") and wanted <= node.files()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_spreading, "LOOK_S", 0.02)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[CopyingMesh]:
    async with copying_mesh(tmp_path, "one", "two", "three", "four") as made:
        yield made


def named(mesh: CopyingMesh, nodes: Iterable[NodeId]) -> set[str]:
    return {name for name, node in mesh.nodes.items() if node.id in set(nodes)}


@pytest.mark.parametrize("coordinator", ["one", "two", "three", "four"])
async def test_a_holder_that_goes_is_replaced_while_the_job_waits(mesh: CopyingMesh, coordinator: str) -> None:
    lead = Coordinator(mesh, coordinator)
    job = await lead.submitted("one")
    (copy,) = named(mesh, job.holders) - {"one"}
    gone = "one" if coordinator != "one" else copy
    left = {"one", copy} - {gone}
    mesh.mark(gone, "down")
    lead.spreading.start()
    await until(lambda: len(lead.having(job) - {gone}) == 2, LIMIT_S)
    await until(lambda: lead.jobs[job.id].holders != job.holders)
    assert left < lead.having(job) - {gone} == named(mesh, lead.jobs[job.id].holders) - {gone}
    await lead.spreading.close()


async def test_where_nobody_else_is_the_coordinator_takes_it(mesh: CopyingMesh) -> None:
    for name in ("three", "four"):
        mesh.mark(name, "down")
    lead = Coordinator(mesh, "three")
    job = await lead.submitted("one")
    mesh.mark("three")
    mesh.mark("two", "down")
    lead.spreading.start()
    await until(lambda: lead.having(job) == {"one", "two", "three"}, LIMIT_S)
    await lead.spreading.close()


async def test_a_node_that_only_restarts_costs_no_copy(mesh: CopyingMesh) -> None:
    """It is missing at one look, and there again at the next one."""
    lead = Coordinator(mesh, "three")
    job = await lead.submitted("one")
    looks, lacks = 0, lead.spreading._lacks

    def looked(job: Job) -> bool:
        nonlocal looks
        looks += 1
        mesh.mark("one", "down" if looks % 2 else "up")
        return lacks(job)

    lead.spreading._lacks = looked  # type: ignore[method-assign]
    lead.spreading.start()
    await until(lambda: looks >= 6)
    await lead.spreading.close()
    assert lead.jobs[job.id] == job


@pytest.mark.parametrize("state", ["completed", "cancelled"])
async def test_a_job_that_is_over_needs_nothing(mesh: CopyingMesh, state: JobState) -> None:
    lead = Coordinator(mesh, "three")
    job = await lead.submitted("one", state=state)
    mesh.mark("one", "down")
    assert not lead.spreading._lacks(job)
    assert lead.spreading._lacks(replace(job, course=Course(state="running")))


async def test_on_an_open_mesh_only_open_data_leaves_its_node(tmp_path: Path) -> None:
    async with copying_mesh(tmp_path, "one", "two", "three", token=None) as mesh:
        lead = Coordinator(mesh, "three")
        closed, opened = await lead.submitted("one"), await lead.submitted("one", open_data=True)
        (copy,) = named(mesh, opened.holders) - {"one"}
        mesh.mark(copy, "down")
        assert [lead.spreading._lacks(job) for job in (closed, opened)] == [False, True]
        lead.spreading.start()
        await until(lambda: len(lead.having(opened)) == 3, LIMIT_S)
        await lead.spreading.close()
        assert lead.having(closed) == {"one"}


async def test_who_does_not_lead_does_nothing(mesh: CopyingMesh) -> None:
    lead = Coordinator(mesh, "three", is_leader=False)
    job = await lead.submitted("one")
    mesh.mark("one", "down")
    lead.spreading.start()
    await until(lambda: lead.looks >= 4)
    await lead.spreading.close()
    assert lead.jobs[job.id] == job


def _view(**members: str) -> View:
    """One letter's nodes, and how they are: `up`, `down`, or `resting`."""
    found = {}
    for name, state in members.items():
        status = Status(name, (), state="draining" if state == "resting" else "up")
        node = NodeId(name * 32)
        found[node] = Member(node, SessionId("1"), status, 1, "down" if state == "down" else "up")
    return View(Ballot(1, NodeId("a" * 32)), 1, None, found)


@pytest.mark.parametrize(
    ("view", "holders", "wanted", "lacks"),
    [
        (_view(a="up", b="up", c="up"), "ab", 2, False),
        (_view(a="up", b="down", c="up"), "ab", 2, True),
        (_view(a="up", b="down", c="up"), "ab", 1, False),
        (_view(a="up", b="down", c="resting"), "ab", 2, False),
        (_view(a="up", b="resting", c="up"), "ab", 2, False),
        (_view(a="down", b="down", c="up"), "ab", 2, False),
        (_view(a="up", c="up"), "ab", 2, True),
        (_view(a="up", b="up"), "ab", 3, False),
    ],
)
def test_copies_are_lacking_where_one_can_be_made(view: View, holders: str, wanted: int, lacks: bool) -> None:
    assert lacks_copies(view, [NodeId(letter * 32) for letter in holders], wanted) == lacks
