"""The kernel as the daemon's engine: started on demand, proxied, watched, and gone when its daemon is."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio
from tests import tiny_model
from tests.kernel.workers import question

from tiermesh.adapters.engines import kernel
from tiermesh.adapters.engines.kernel import KernelEngine, why_unavailable
from tiermesh.adapters.engines.served_model import Wanted
from tiermesh.adapters.lora_folder import read_adapter
from tiermesh.adapters.model_source import LocalModel
from tiermesh.daemon.supervisor import FILE_NAME, Supervisor
from tiermesh.errors import EngineFailed, PoisonedRequest, TiermeshError, Unavailable, UnknownModel, WorkerDied
from tiermesh.types import EngineInfo, Load

pytestmark = pytest.mark.asyncio(loop_scope="module")
KILLS = 3
START_LIMIT_S = 60.0
"""For a worker to come back: torch alone takes seconds to import, and the machine is busy with it."""
DEATH_NOTICED_S = 10.0
"""Here a worker's memory is given back while eight clients ask; how soon it is at rest has a test of its own."""
SLOTS, QUEUE = 16, 32
"""What a worker computes at once, and what may wait behind it."""
LONG = {"temperature": 0.0, "max_tokens": 4000, "logit_bias": {str(tiny_model.END): -100.0}}


@asynccontextmanager
async def opened(
    folder: Path, *models: Path | str, pinned: bool = False, **options: Any
) -> AsyncIterator[KernelEngine]:
    supervisor = Supervisor(folder)
    supervisor.start()
    engine = KernelEngine(
        [Wanted(name=str(model), tier=1, pinned=pinned) for model in models],
        hire=supervisor.worker,
        state_dir=folder,
        on_change=lambda: None,
        threads=1,
        **options,
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()
        await supervisor.close()


@dataclass(frozen=True)
class Kernel:
    """One engine for the tests that leave it as it was, and its state folder."""

    engine: KernelEngine
    folder: Path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kernel]:
    folder = tmp_path_factory.mktemp("e")
    async with opened(folder, tiny_folder, pinned=True) as engine:
        await until(lambda: bool(engine.models) and engine.models[0].state == "warm")
        yield Kernel(engine, folder)


async def until(condition: Callable[[], bool], limit_s: float = 120.0) -> None:
    async with asyncio.timeout(limit_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


async def until_more(ended: list[Any], count: int, limit_s: float = 120.0) -> None:
    """Wait for that many more."""
    enough = len(ended) + count
    await until(lambda: len(ended) >= enough, limit_s)


def pids(folder: Path) -> list[int]:
    return [row["pid"] for row in json.loads((folder / FILE_NAME).read_text())]


def socket_of(shared: Kernel) -> aiohttp.UnixConnector:
    return aiohttp.UnixConnector(str(shared.folder / "kernel-0.sock"))


def about(engine: KernelEngine, **parameters: object) -> dict[str, object]:
    """A question to its first model."""
    return question("x", model=engine.models[0].name if engine.models else "m", **parameters)


async def ask(engine: KernelEngine, **parameters: object) -> tuple[int, str, bytes]:
    async with engine.chat(about(engine, **parameters)) as reply:
        return reply.status, reply.content_type, b"".join([chunk async for chunk in reply.chunks])


async def test_whether_the_kernel_can_run_is_known_without_importing_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_unavailable() is None
    monkeypatch.setattr(kernel, "NEEDED", ("torch", "no_such_package"))
    reason = why_unavailable()
    assert reason is not None
    assert "no_such_package" in reason
    assert "pip install" in reason


async def test_it_starts_with_the_first_prompt(tiny_folder: Path, tmp_path: Path) -> None:
    async with opened(tmp_path, tiny_folder) as engine:
        await until(lambda: bool(engine.models))
        (model,) = engine.models
        assert (model.tier, model.engine, model.state) == (1, "kernel", "cold")
        assert model.digest.startswith("sha256:")
        assert engine.info == EngineInfo("kernel", "kernel", "ready", can_continue=True)
        assert pids(tmp_path) == []
        asking = asyncio.create_task(ask(engine, max_tokens=3))
        await until(lambda: engine.models[0].state == "loading")
        assert engine.info.state == "starting"
        assert engine.load == Load(active=1, slots=1, queued=0)
        status, content_type, body = await asking
        assert (status, content_type) == (200, "application/json")
        assert json.loads(body)["usage"]["completion_tokens"] == 3
        assert engine.models[0].state == "warm"
        assert engine.load == Load(active=0, slots=SLOTS, queued=0)


async def test_what_a_client_did_wrong_passes_through(shared: Kernel) -> None:
    status, content_type, body = await ask(shared.engine, tools=[{"type": "function"}])
    assert (status, content_type) == (400, "application/json")
    assert json.loads(body)["error"]["param"] == "tools[0].function"


async def test_a_stream_passes_through_as_it_comes(shared: Kernel) -> None:
    status, content_type, body = await ask(shared.engine, stream=True, max_tokens=5)
    assert (status, content_type) == (200, "text/event-stream")
    assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.alone
async def test_leaving_stops_the_generation(shared: Kernel) -> None:
    async with shared.engine.chat(about(shared.engine, stream=True, **LONG)) as reply:
        await anext(aiter(reply.chunks))
    async with asyncio.timeout(1.0), aiohttp.ClientSession(connector=socket_of(shared)) as session:
        while True:
            async with session.get("http://worker/health") as response:
                if (await response.json())["active"] == 0:
                    break
            await asyncio.sleep(0.01)


async def test_load_counts_who_waits_and_a_full_queue_is_told(shared: Kernel) -> None:
    engine = shared.engine
    count = SLOTS + QUEUE + 3
    waiting = [asyncio.create_task(ask(engine, **LONG)) for _ in range(count)]
    await until(lambda: any(task.done() for task in waiting))
    failed = [task for task in waiting if task.done()]
    assert all(isinstance(task.exception(), Unavailable) for task in failed)
    assert engine.load == Load(active=SLOTS, slots=SLOTS, queued=count - len(failed) - SLOTS)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert engine.load == Load(active=0, slots=SLOTS, queued=0)


@pytest.mark.alone
@pytest.mark.parametrize("stream", [True, False])
async def test_a_workers_death_fails_its_requests_within_a_second_and_it_comes_back(
    shared: Kernel, stream: bool
) -> None:
    engine = shared.engine
    await ask(engine, max_tokens=1)
    asking = asyncio.create_task(ask(engine, stream=stream, **LONG))
    await until(lambda: engine.load.active == 1)
    (pid,) = pids(shared.folder)
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(EngineFailed):
        await asking
    await until(lambda: engine.models[0].state == "loading")
    assert time.monotonic() - began < 1.0
    assert (await ask(engine, max_tokens=1))[0] == 200
    assert pids(shared.folder) != [pid]


async def test_a_worker_that_is_killed_again_and_again_under_load_loses_no_request_silently(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """Every request is answered or ends typed, soon after the death; and the worker is back each time."""
    async with opened(tmp_path, tiny_folder, pinned=True) as engine:
        await until(lambda: bool(engine.models) and engine.models[0].state == "warm")
        ended: list[type[BaseException] | int] = []

        async def client(number: int) -> None:
            for turn in range(1000):
                try:
                    mine = f"{number}.{turn}"  # or all would be one request, soon convicted
                    ended.append((await ask(engine, max_tokens=200, user=mine))[0])
                except TiermeshError as error:
                    ended.append(type(error))

        clients = [asyncio.create_task(client(number)) for number in range(8)]
        for _ in range(KILLS):
            await until_more(ended, 8)
            await until(lambda: engine.models[0].state == "warm")
            running = engine.load.active
            os.kill(pids(tmp_path)[0], signal.SIGKILL)
            killed = time.monotonic()
            await until_more(ended, running, DEATH_NOTICED_S)
            await until(lambda: engine.models[0].state == "warm")
            assert time.monotonic() - killed < START_LIMIT_S
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        assert set(ended) <= {200, EngineFailed, WorkerDied, PoisonedRequest, Unavailable}
        assert min(ended.count(200), ended.count(WorkerDied)) > 0
        await until(lambda: engine.load == Load(active=0, slots=SLOTS, queued=0))


async def test_adapters_and_embeddings_come_from_the_models_worker(tiny_folder: Path, tmp_path: Path) -> None:
    adapter = read_adapter("pirate", str(tiny_model.build_adapter(tmp_path / "pirate")))
    async with opened(tmp_path, tiny_folder, adapters=[adapter]) as engine:
        await until(lambda: len(engine.models) == 2)
        base, pirate = engine.models
        assert (pirate.name, pirate.digest == base.digest) == ("pirate", False)
        answers = []
        for model in (base, pirate):
            body = question("x", temperature=0.0, max_tokens=20) | {"model": model.name}
            async with engine.chat(body) as reply:
                answer = json.loads(b"".join([chunk async for chunk in reply.chunks]))
            answers.append(answer["choices"][0]["message"]["content"])
            assert answer["model"] == model.name
        assert answers[0] != answers[1]
        async with engine.embed({"model": base.name, "input": ["x", "y"]}) as reply:
            body = json.loads(b"".join([chunk async for chunk in reply.chunks]))
        assert [len(each["embedding"]) for each in body["data"]] == [tiny_model.HIDDEN] * 2
        assert len(pids(tmp_path)) == 1


async def test_an_adapter_that_is_refused_leaves_its_model_in_service(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is of another architecture, which only the worker can see."""
    fitting = read_adapter("pirate", str(tiny_model.build_adapter(tmp_path / "pirate")))
    stranger = read_adapter("stranger", str(tiny_model.build_adapter(tmp_path / "stranger", "gpt2")))
    async with opened(tmp_path, tiny_folder, adapters=[stranger, fitting]) as engine:
        await until(lambda: len(engine.models) == 3)
        body = question("x", max_tokens=1) | {"model": "stranger"}
        async with engine.chat(body) as reply:
            told = json.loads(b"".join([chunk async for chunk in reply.chunks]))
        assert (reply.status, told["error"]["code"]) == (404, "model_not_found")
        assert "for another model: this one has no transformer" in told["error"]["message"]
        assert [model.name for model in engine.models] == [engine.models[0].name, "pirate"]
        assert engine.info.state == "ready"
        assert (await ask(engine, max_tokens=1))[0] == 200
        async with engine.chat(body | {"model": "pirate"}) as reply:
            assert reply.status == 200
    assert f"does not take the adapter stranger; its log says why: {tmp_path}" in caplog.text


async def test_closing_leaves_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    async with opened(tmp_path, tiny_folder, pinned=True) as engine:
        await until(lambda: bool(engine.models) and engine.models[0].state == "warm")
        (pid,) = pids(tmp_path)
    assert not psutil.pid_exists(pid)
    assert pids(tmp_path) == []
    assert not (tmp_path / "kernel-0.sock").exists()
    await engine.close()


async def test_a_model_that_is_missing_is_found_once_it_is_pulled(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "LOOK_AGAIN_S", 0.01)
    answers: list[LocalModel | None] = [None, None, LocalModel("m", tiny_folder, "sha256:1", "folder", 1, 1, None)]

    def find(name: str) -> LocalModel:
        found = answers.pop(0)
        if found is None:
            raise UnknownModel(f"{name} is not here; run `mesh model pull {name}`")
        return found

    async with opened(tmp_path, "m", find=find) as engine:
        await until(lambda: engine.info.state == "down")
        assert "mesh model pull m" in engine.missing
        assert engine.models == ()
        with pytest.raises(EngineFailed, match="mesh model pull"):
            await ask(engine)
        await until(lambda: bool(engine.models))
        assert (engine.info.state, engine.missing) == ("ready", "")


async def test_a_model_that_can_not_be_loaded_is_told(tmp_path: Path) -> None:
    broken = LocalModel("broken", tmp_path, "sha256:1", "folder", 1, 1, None)
    async with opened(tmp_path, "broken", find=lambda _: broken) as engine:
        await until(lambda: bool(engine.models))
        with pytest.raises(EngineFailed, match="broken can't be served"):
            await ask(engine)
        assert engine.info.state == "down"


async def test_a_state_folder_with_a_long_name_still_has_a_socket(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    async with opened(folder, tiny_folder) as engine:
        await until(lambda: bool(engine.models))
        assert (await ask(engine, max_tokens=1))[0] == 200
