"""A job followed from far away: nothing is missed and nothing told twice, whatever becomes of the connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tiermesh.client import Data, TrainingJob, jobs
from tiermesh.client.job_door import submission
from tiermesh.client.jobs import Decision, LogText
from tiermesh.errors import DataUnusable, EngineFailed, NotFound, TiermeshError, Unavailable
from tiermesh.protocol.jobs import CrashReport, JobReport, ResultReport
from tiermesh.protocol.training_events import Warned

RUNNING = JobReport(id="1", name="faq", state="running", node="desk")
DONE = RUNNING.model_copy(update={"state": "completed"})


def line(number: int) -> bytes:
    return b'id: %d\ndata: {"event":"warned","message":"%d"}\n\n' % (number, number)


def job_event(report: JobReport) -> bytes:
    return b"event: job\ndata: " + report.model_dump_json().encode() + b"\n\n"


class Door:
    """Each asking for events gets the next of `answers`: bytes, and perhaps an error after them."""

    def __init__(self, *answers: list[bytes | TiermeshError]) -> None:
        self.answers = list(answers)
        self.asked: list[int] = []

    async def meet(self) -> None: ...

    async def turn(self) -> None: ...

    async def job_report(self, job: str) -> JobReport:
        return DONE

    async def decide_job(self, job: str, decision: Decision) -> JobReport:
        raise NotFound("no")

    async def job_log(
        self, job: str, *, attempt: int | None = None, lines: int | None = None, after: int | None = None
    ) -> LogText:
        raise NotFound("no")

    async def job_crash(self, job: str, *, attempt: int | None = None) -> CrashReport:
        raise NotFound("no")

    async def job_page(self, job: str) -> str:
        raise NotFound("no")

    async def job_results(self, job: str) -> ResultReport:
        raise NotFound("no")

    def result_chunks(self, job: str, name: str) -> AsyncIterator[bytes]:
        raise NotFound("no")

    async def job_chunks(self, job: str, after: int) -> AsyncIterator[bytes]:
        self.asked.append(after)
        for piece in self.answers.pop(0):
            if isinstance(piece, TiermeshError):
                raise piece
            yield piece


async def told(job: TrainingJob) -> list[str]:
    return [
        event.message if isinstance(event, Warned) else event.state
        async for event in job.events()
        if isinstance(event, Warned | JobReport)
    ]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "AGAIN_S", 0.0)


async def test_events_come_in_order_until_the_job_is_over() -> None:
    whole = job_event(RUNNING) + line(1) + b": nothing new\n\n" + line(2) + job_event(DONE)
    door = Door([whole[i : i + 7] for i in range(0, len(whole), 7)])
    job = TrainingJob(door, RUNNING)
    assert await told(job) == ["running", "1", "2", "completed"]
    assert (job.after, job.report.state, door.asked) == (2, "completed", [0])


async def test_a_node_that_ends_and_comes_back_is_asked_for_the_rest() -> None:
    door = Door(
        [job_event(RUNNING), line(1), line(2)[:9]],
        [Unavailable("away")],
        [line(2), EngineFailed("cut")],
        [line(3), job_event(DONE)],
    )
    assert await told(TrainingJob(door, RUNNING)) == ["running", "1", "2", "3", "completed"]
    assert door.asked == [0, 1, 1, 2]


async def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PATIENCE_S", 0.0)
    with pytest.raises(Unavailable, match="away"):
        await told(TrainingJob(Door([Unavailable("away")]), RUNNING))
    with pytest.raises(EngineFailed, match="broke off"):
        await told(TrainingJob(Door([line(1)]), RUNNING))


async def test_a_job_that_is_gone_is_an_error_at_once() -> None:
    with pytest.raises(NotFound):
        await told(TrainingJob(Door([NotFound("no job")]), RUNNING))


async def test_waiting_gives_the_end() -> None:
    job = TrainingJob(Door([job_event(DONE)]), RUNNING)
    assert await asyncio.wait_for(job.wait(), 5) == DONE


async def test_data_is_a_file_or_in_memory(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\nx\n")
    file, memory = Data(tmp_path / "a.csv"), Data(b"text\nx\n", "b.csv")
    assert (file.name, memory.name, file.size_bytes, memory.size_bytes) == ("a.csv", "b.csv", 7, 7)
    assert await file.sha256() == await memory.sha256()
    assert [piece async for piece in file.chunks()] == [piece async for piece in memory.chunks()] == [b"text\nx\n"]
    assert [piece async for piece in file.chunks(2, 3)] == [piece async for piece in memory.chunks(2, 3)] == [b"xt\n"]


async def test_data_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataUnusable, match=r"can't read the data .*nothere\.jsonl: no such file"):
        await Data(tmp_path / "nothere.jsonl").sha256()


def test_a_job_says_what_it_is() -> None:
    assert repr(TrainingJob(Door([]), RUNNING)) == f"TrainingJob({RUNNING.name!r}, id={RUNNING.id!r}, state='running')"


async def test_waiting_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "AGAIN_S", 0.01)
    with pytest.raises(TimeoutError):
        await TrainingJob(Door([job_event(RUNNING)], *[[] for _ in range(1000)]), RUNNING).wait(0.05)


def test_paths_stay_here_and_the_id_is_made_here() -> None:
    body = submission({"model_name": "m", "dataset_path": "/home/me/x.jsonl"}, name=None)
    assert (body["spec"], "name" in body, len(str(body["id"]))) == ({"model_name": "m"}, False, 26)
    assert submission({}, name="faq", job_id="X") == {"id": "X", "spec": {}, "name": "faq"}
