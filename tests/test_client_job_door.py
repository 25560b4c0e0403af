"""Jobs over HTTP: sent once whatever is lost, decided, looked at, and their files fetched whole."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.jobs_fake import FakeJobs

from tiermesh import RemoteClient, SyncClient
from tiermesh.client import Data, results
from tiermesh.errors import EngineFailed, InvalidInput, NotFound, NotPossibleNow, TiermeshError, Unavailable
from tiermesh.protocol.jobs import JobReport, ResultFile
from tiermesh.protocol.training_events import StepDone

SPEC = {"model_name": "m", "dataset_path": "/home/me/faq.jsonl"}
FAQ = Data(b'{"text": "x"}\n', "faq.jsonl")


def within(folder: Path) -> list[Path]:
    return [*folder.rglob("*")]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESH_TOKEN", raising=False)
    monkeypatch.setattr("tiermesh.client.job_door.AGAIN_S", 0.01)
    monkeypatch.setattr("tiermesh.client.jobs.AGAIN_S", 0.0)
    monkeypatch.setattr("tiermesh.client.jobs.LOG_PAUSE_S", 0.0)
    monkeypatch.setattr(results, "AGAIN_S", 0.0)


@pytest.fixture
async def mesh() -> AsyncIterator[FakeJobs]:
    with FakeJobs() as fake:
        yield fake


@pytest.fixture
async def client(mesh: FakeJobs) -> AsyncIterator[RemoteClient]:
    async with RemoteClient(mesh.url) as made:
        yield made


async def test_five_lost_replies_make_one_job(mesh: FakeJobs, client: RemoteClient) -> None:
    mesh.desk.lose_replies = 5
    waited: list[TiermeshError] = []
    job = await client.train(SPEC, FAQ, name="faq", waits=waited.append)
    assert (mesh.desk.posts, len(waited), [*mesh.desk.jobs]) == (6, 5, [job.id])
    assert "dataset_path" not in mesh.only().body["spec"]


async def test_a_mesh_without_a_coordinator_is_waited_for(mesh: FakeJobs, client: RemoteClient) -> None:
    mesh.desk.no_coordinator = 3
    job = await client.train(SPEC, FAQ)
    assert (mesh.desk.posts, [*mesh.desk.jobs]) == (4, [job.id])


async def test_when_its_node_ends_another_one_is_asked() -> None:
    with FakeJobs() as other:
        first = FakeJobs()
        first.__enter__()
        first.desk = other.desk
        first.nodes = [other.node(id="b" * 32, role="member")]
        other.desk.holds = True
        try:
            async with RemoteClient(first.url) as client:
                job = await client.train(SPEC, FAQ)
                steps = []
                async for event in job.events():
                    if isinstance(event, StepDone):
                        steps.append(event.step)
                    if steps == [1, 2] and first.url:
                        await asyncio.to_thread(first.__exit__, None, None, None)
                        first.url, other.desk.holds = "", False
                assert (steps, job.report.state, client.url) == ([1, 2], "completed", other.url)
        finally:
            if first.url:
                first.__exit__(None, None, None)


async def test_patience_ends(mesh: FakeJobs, client: RemoteClient) -> None:
    mesh.desk.no_coordinator = 1_000_000
    with pytest.raises(Unavailable, match="no coordinator"):
        await client.train(SPEC, FAQ, patience_s=0.05)
    assert mesh.desk.posts > 1


async def test_nobody_there_and_what_is_wrong_are_told_at_once(mesh: FakeJobs, client: RemoteClient) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with RemoteClient(f"127.0.0.1:{taken.getsockname()[1]}") as alone:
            with pytest.raises(Unavailable, match="no daemon answers"):
                await alone.train(SPEC, FAQ)
    mesh.failure = (400, {"type": "invalid_spec", "message": "num_epochs: is 0"}, {})
    with pytest.raises(InvalidInput, match="num_epochs"):
        await client.train(SPEC, FAQ)


async def test_options_travel_and_what_is_not_said_does_not(mesh: FakeJobs, client: RemoteClient) -> None:
    await client.train(SPEC, FAQ, name=None, approve=True, max_usd=2.5, gates={"canary": False}, job_id="0" * 26)
    body = mesh.only().body
    assert {name: body[name] for name in ("id", "approve", "max_usd", "gates")} == {
        "id": "0" * 26,
        "approve": True,
        "max_usd": 2.5,
        "gates": {"canary": False},
    }
    assert "name" not in body


async def test_a_job_from_its_submission_to_its_files(mesh: FakeJobs, client: RemoteClient, tmp_path: Path) -> None:
    job = await client.train(SPEC, FAQ, name="faq")
    events = [event async for event in job.events()]
    assert [event.state for event in events if isinstance(event, JobReport)] == ["queued", "running", "completed"]
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2]
    assert (await job.wait()).served == ["alpha", "gpu1"]
    mesh.desk.cut_files = 1
    found = await (await client.job("faq")).results(tmp_path / "out")
    assert [file.name for file in found.files] == ["adapter.bin", "more/card.md"]
    assert sorted(path.name for path in within(tmp_path / "out")) == ["adapter.bin", "card.md", "more"]
    assert next(path for path in within(tmp_path) if path.name == "card.md").read_bytes() == b"# card"
    assert (await job.page()).startswith("# faq\n")
    await client.remove_job("faq")
    with pytest.raises(NotFound, match="no job is called 'faq'"):
        await client.job("faq")


async def test_what_lies_there_is_not_fetched_again(mesh: FakeJobs, client: RemoteClient, tmp_path: Path) -> None:
    mesh.has("faq", "completed")
    job = await client.job("faq")
    await job.results(tmp_path)
    (tmp_path / "adapter.bin").write_bytes(b"damaged")
    mesh.requests.clear()
    await job.results(tmp_path)
    assert (tmp_path / "adapter.bin").read_bytes() == b"weights"
    assert [path for _, path, *_ in mesh.requests if "/results/" in path] == ["/api/jobs/FAQ/results/adapter.bin"]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "", ".ssh/evil", "a\\..\\evil", "a\nb"])
async def test_hostile_names_are_never_written(mesh: FakeJobs, client: RemoteClient, tmp_path: Path, name: str) -> None:
    mesh.has("faq", "completed")
    mesh.desk.claims = [ResultFile(name=name, sha256="0" * 64, size_bytes=1)]
    with pytest.raises(EngineFailed, match="can't be written here"):
        await (await client.job("faq")).results(tmp_path / "out")
    assert not within(tmp_path)


async def test_files_that_are_not_what_was_promised_are_not_kept(
    mesh: FakeJobs, client: RemoteClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "PATIENCE_S", 0.0)
    mesh.has("faq", "completed")
    mesh.desk.claims = [ResultFile(name="adapter.bin", sha256="0" * 64, size_bytes=7)]
    with pytest.raises(EngineFailed, match="did not come as it was promised"):
        await (await client.job("faq")).results(tmp_path)
    assert not within(tmp_path)


async def test_a_job_without_a_result_says_so(mesh: FakeJobs, client: RemoteClient, tmp_path: Path) -> None:
    mesh.has("now", "running")
    mesh.has("bad", "failed", reason="out of memory")
    with pytest.raises(NotPossibleNow, match="job now is running: it has no result yet"):
        await (await client.job("now")).results()
    assert (await (await client.job("bad")).results()).files == []
    with pytest.raises(NotFound, match="job bad failed, and left no files"):
        await (await client.job("bad")).results(tmp_path)


async def test_a_person_decides(mesh: FakeJobs, client: RemoteClient) -> None:
    mesh.desk.asks = True
    job = await client.train(SPEC, FAQ)
    assert job.report.state == "waiting"
    cheaper = await job.optimize()
    assert cheaper.estimate is not None
    assert (cheaper.state, cheaper.estimate.usd_high) == ("waiting", 0.15)
    assert (await job.approve()).state == "queued"
    with pytest.raises(NotPossibleNow, match="nothing is left to approve"):
        await job.approve()
    assert (await job.cancel()).state == "cancelled"


async def test_logs_are_read_and_followed(mesh: FakeJobs, client: RemoteClient) -> None:
    mesh.has("faq", "running")
    job = await client.job("faq")
    assert (await job.logs(), await job.logs(lines=1)) == ("loading\nready\n", "ready\n")
    read = []
    async for text in job.follow_logs():
        read.append(text)
        if len(read) == 1:
            mesh.desk.log += "step\n"
        else:
            await job.cancel()
    assert "".join(read) == "loading\nready\nstep\n"


async def test_more_jobs_are_asked_for(mesh: FakeJobs, client: RemoteClient) -> None:
    for name in ("one", "two", "three"):
        mesh.has(name, "completed")
    mesh.has("now", "running")
    assert [job.name for job in await client.jobs(1)] == ["three", "now"]
    told = await client.job_list(2)
    assert ([job.name for job in told.jobs], told.more) == (["two", "three", "now"], 1)
    assert (await client.job_list()).more == 0


def test_a_script_needs_no_await(tmp_path: Path) -> None:
    with FakeJobs() as mesh, SyncClient(mesh.url) as client:
        job = client.train(SPEC, FAQ, name="faq")
        assert [event.step for event in job.events() if isinstance(event, StepDone)] == [1, 2]
        assert (job.wait(5).state, client.job("faq").refresh().state) == ("completed", "completed")
        assert [report.name for report in client.jobs()] == ["faq"]
        assert (client.jobs(0), client.job_list(0).more) == ([], 1)
        assert len(job.results(tmp_path).files) == len([path for path in tmp_path.rglob("*") if path.is_file()])
        assert (job.page()[:6], job.logs(lines=1)) == ("# faq\n", "ready\n")
        assert "".join(job.follow_logs()) == "loading\nready\n"
        with pytest.raises(NotPossibleNow):
            job.approve()
