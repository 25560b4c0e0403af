"""OpenAI's own Python client fine-tunes: files and jobs, against real daemons and a tiny model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import FileObject
from openai.types.fine_tuning import FineTuningJob
from tests.network.job_mesh import TOKEN, JobMesh, job_mesh

pytest.importorskip("torch")
from tests import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

OVER = ("succeeded", "failed", "cancelled")
OVER_S = 400.0
ROWS = b"".join(
    json.dumps({"messages": [{"role": "user", "content": f"after {n}?"}, {"role": "assistant", "content": f"{n + 1}"}]})
    .encode() + b"\n"
    for n in range(40)
)  # fmt: skip
PAIRS = b"".join(
    json.dumps({
        "input": {"messages": [{"role": "user", "content": f"after {n}?"}]},
        "preferred_output": [{"role": "assistant", "content": f"{n + 1}"}],
        "non_preferred_output": [{"role": "assistant", "content": f"{n - 1}"}],
    }).encode() + b"\n"
    for n in range(24)
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
async def jobs(tmp_path: Path, model: Path) -> AsyncIterator[JobMesh]:
    async with job_mesh(tmp_path, model, 2) as jobs:
        yield jobs


def client(jobs: JobMesh, node: int) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{jobs.mesh.seats[node].url}/v1", api_key=TOKEN, max_retries=0)


async def send(of: openai.AsyncOpenAI, content: bytes = ROWS, name: str = "my rows.jsonl") -> FileObject:
    return await of.files.create(file=(name, content), purpose="fine-tune")


async def until_over(of: openai.AsyncOpenAI, ident: str) -> FineTuningJob:
    async with asyncio.timeout(OVER_S):
        while (job := await of.fine_tuning.jobs.retrieve(ident)).status not in OVER:
            await asyncio.sleep(0.2)
    return job


async def test_files_are_known_on_every_node_and_forgotten_everywhere(jobs: JobMesh) -> None:
    async with client(jobs, 0) as here, client(jobs, 1) as there:
        sent = await send(here)
        assert (sent.filename, sent.bytes, sent.purpose, sent.status) == (
            "my rows.jsonl",
            len(ROWS),
            "fine-tune",
            "processed",
        )
        assert (await send(here)).id == sent.id, "the same file under the same name"
        other = await send(there, b"{}\n", "other.jsonl")
        for each in (here, there):
            assert {file.id async for file in each.files.list()} == {sent.id, other.id}
            assert [file.id async for file in each.files.list(limit=1, order="asc")] == [sent.id, other.id]
            assert [file.id async for file in each.files.list(purpose="batch")] == []
            assert await each.files.retrieve(sent.id) == sent
            assert (await each.files.content(sent.id)).read() == ROWS
        assert (await there.files.delete(sent.id)).deleted
        for each in (here, there):
            with pytest.raises(openai.NotFoundError):
                await each.files.retrieve(sent.id)
            with pytest.raises(openai.NotFoundError):
                await each.files.delete(sent.id)


async def test_wrong_uploads_are_refused_by_name(jobs: JobMesh) -> None:
    async with client(jobs, 0) as here:
        with pytest.raises(openai.BadRequestError) as caught:
            await here.files.create(file=("a.jsonl", ROWS), purpose="assistants")
        assert caught.value.param == "purpose"
        with pytest.raises(openai.BadRequestError) as caught:
            await send(here, b"")
        assert caught.value.param == "file"
        assert [file async for file in here.files.list()] == []


async def test_a_job_is_tuned_from_another_node_and_leaves_figures(jobs: JobMesh) -> None:
    async with client(jobs, 0) as here, client(jobs, 1) as there:
        rows, held_out = await send(here), await send(here, ROWS.replace(b"after", b"behind"), "held-out.jsonl")
        how: Any = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 10.0}
        job = await there.fine_tuning.jobs.create(
            model="tiny",
            training_file=rows.id,
            validation_file=held_out.id,
            suffix="my faq",
            seed=7,
            method={"type": "supervised", "supervised": {"hyperparameters": how}},
        )
        assert (job.object, job.model, job.seed, job.training_file) == ("fine_tuning.job", "tiny", 7, rows.id)
        assert job.validation_file == held_out.id
        assert job.hyperparameters.model_dump() == how
        assert job.fine_tuned_model is None
        done = await until_over(here, job.id)
        assert (done.status, done.fine_tuned_model, done.error) == ("succeeded", "my-faq", None)
        assert done.finished_at is not None
        assert done.finished_at >= done.created_at
        assert done.trained_tokens
        assert [each.id async for each in here.fine_tuning.jobs.list()] == [job.id]

        events = [event async for event in there.fine_tuning.jobs.list_events(job.id, limit=5)]
        metrics = [event for event in events if event.type == "metrics"]
        assert len(metrics) >= 20
        assert "done after 20 steps" in " ".join(event.message for event in events[:5])
        assert len({event.id for event in events}) == len(events)
        (checkpoint, *_) = [each async for each in here.fine_tuning.jobs.checkpoints.list(job.id)]
        assert checkpoint.step_number == 20
        assert checkpoint.metrics.train_loss is not None
        table = (await here.files.content(done.result_files[0])).text.splitlines()
        assert table[0].startswith("step,train_loss")
        assert len([row for row in table[1:] if row.split(",")[1]]) == 20
        with pytest.raises(openai.ConflictError):
            await here.fine_tuning.jobs.cancel(job.id)


@pytest.mark.long
async def test_preferences_are_learnt_from_openais_pairs(jobs: JobMesh) -> None:
    async with client(jobs, 0) as here:
        pairs = await send(here, PAIRS, "pairs.jsonl")
        method: Any = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 1, "batch_size": 8, "beta": 0.2}}}
        job = await here.fine_tuning.jobs.create(
            model="tiny",
            training_file=pairs.id,
            method=method,
        )
        done = await until_over(here, job.id)
        assert done.status == "succeeded", done.error
        assert done.method is not None
        assert done.method.type == "dpo"
        assert done.method.dpo is not None


@pytest.mark.long
async def test_a_job_is_cancelled(jobs: JobMesh) -> None:
    async with client(jobs, 0) as here:
        rows = await send(here)
        job = await here.fine_tuning.jobs.create(
            model="tiny", training_file=rows.id, hyperparameters={"n_epochs": 10_000, "batch_size": 1}
        )
        await jobs.until_step(job.id.removeprefix("ftjob-"), 3)
        assert (await here.fine_tuning.jobs.cancel(job.id)).status == "cancelled"
        assert (await here.fine_tuning.jobs.retrieve(job.id)).status == "cancelled"


@pytest.mark.long
async def test_a_repeated_request_is_one_job(jobs: JobMesh) -> None:
    async with client(jobs, 0) as here, client(jobs, 1) as there:
        rows = await send(here)
        once = {"Idempotency-Key": "once"}
        asked: Any = {"model": "tiny", "training_file": rows.id, "hyperparameters": {"n_epochs": 1}}
        first = await here.fine_tuning.jobs.create(**asked, extra_headers=once)
        again = await there.fine_tuning.jobs.create(**asked, extra_headers=once)
        assert first.id == again.id
        await until_over(here, first.id)


async def test_mistakes_are_told_in_openais_shape(jobs: JobMesh) -> None:
    async with client(jobs, 0) as here:
        with pytest.raises(openai.BadRequestError) as caught:
            await here.fine_tuning.jobs.create(model="tiny", training_file="file-nowhere")
        assert (caught.value.param, caught.value.type) == ("training_file", "invalid_request_error")
        rows = await send(here)
        with pytest.raises(openai.BadRequestError) as caught:
            await here.fine_tuning.jobs.create(
                model="tiny",
                training_file=rows.id,
                method={"type": "reinforcement"},
            )
        assert caught.value.param == "method.type"
        with pytest.raises(openai.NotFoundError):
            await here.fine_tuning.jobs.retrieve("ftjob-01ARZ3NDEKTSV4RRFFQ69G5FAV")
