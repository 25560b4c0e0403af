"""What a job left, read through from the node that has it."""

from __future__ import annotations

import secrets
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.daemon.copying_mesh import LIMIT_S, CopyingMesh, copying_mesh, new_job

from tiermesh.adapters import fetching
from tiermesh.core.attempts import Attempt, Told
from tiermesh.core.jobs import Asked, Course, Dataset, Job, JobId
from tiermesh.daemon.results import Results
from tiermesh.errors import EngineFailed
from tiermesh.protocol.artifacts import ArtifactFile, Manifest
from tiermesh.types import NO_BALLOT

CONTENT = secrets.token_bytes(2 << 20)


async def left_on(mesh: CopyingMesh, name: str) -> Job:
    node = mesh[name]
    sha256 = await node.blobs.put_whole(CONTENT)
    manifest = Manifest.of([ArtifactFile(name="adapter", sha256=sha256, size_bytes=len(CONTENT))])
    told = Told(seq=1, state="completed", artifact=await node.blobs.put_whole(manifest.encoded()))
    return Job(
        id=JobId(new_job()),
        asked=Asked(name="faq", spec={}, data=Dataset(sha256, "faq.jsonl")),
        course=Course(state="completed"),
        attempts=(Attempt(number=1, ballot=NO_BALLOT, node=node.id, spec={}, told=told),),
    )


def results(mesh: CopyingMesh, name: str, job: Job) -> Results:
    async def find(key: str) -> Job:
        assert key == job.name
        return job

    scheduler = SimpleNamespace(find=find, member=lambda node: mesh.view.members[node], node_name=str)
    return Results(scheduler=cast(Any, scheduler), blobs=mesh[name].blobs, peers=mesh[name].peers)


@pytest.mark.parametrize("fault", ["none", "cut:1000000", "drip"])
async def test_a_holder_that_breaks_off_or_falls_silent_is_an_error_of_the_mesh(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "PROGRESS_S", LIMIT_S / 20)
    async with copying_mesh(tmp_path, "one", "me") as mesh:
        pieces, size = await results(mesh, "me", await left_on(mesh, "one")).file("faq", "adapter")
        assert size == len(CONTENT)
        assert not isinstance(pieces, Path)
        mesh["one"].faults = [fault]
        if fault == "none":
            assert b"".join([piece async for piece in pieces]) == CONTENT
            return
        with pytest.raises(EngineFailed):
            async for _ in pieces:
                pass
