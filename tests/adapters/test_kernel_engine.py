"""The kernel as an engine, with scripted workers: several models in bounded memory, load, deaths and their culprits."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tiermesh.adapters.engines import residents, served_model
from tiermesh.adapters.engines.kernel import KernelEngine
from tiermesh.adapters.engines.memory import MIN_CACHE_BYTES, PROCESS_BYTES
from tiermesh.adapters.engines.served_model import Wanted
from tiermesh.adapters.lora_folder import LocalAdapter
from tiermesh.adapters.model_source import LocalModel
from tiermesh.daemon.supervisor import FILE_NAME, Supervisor
from tiermesh.errors import EngineFailed, InvalidInput, PoisonedRequest, Unavailable, WorkerDied
from tiermesh.types import Load

ONE_BYTES = PROCESS_BYTES + MIN_CACHE_BYTES
"""What a model without parameters takes of the memory, when there is little."""


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_model, "TORCH", "tests.worker_fake")


class Kernel:
    """An engine with one folder a model, `a` to `z`."""

    def __init__(self, folder: Path, engine: KernelEngine) -> None:
        self.folder = folder
        self.engine = engine
        self.changes: list[tuple[str, float | None]] = []

    async def ask(self, model: str, text: str = "hello", **more: object) -> str:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
        async with self.engine.chat(body) as reply:
            answer = json.loads(b"".join([chunk async for chunk in reply.chunks]))
        return str(answer["choices"][0]["message"]["content"])

    def held(self, model: str, text: str = "hold") -> asyncio.Task[str]:
        return asyncio.create_task(self.ask(model, text))

    def states(self) -> dict[str, str]:
        return {model.name: model.state for model in self.engine.models}

    def pids(self) -> list[int]:
        return [row["pid"] for row in json.loads((self.folder / FILE_NAME).read_text())]

    def started(self, model: str) -> list[list[str]]:
        """The arguments of each start of a model's worker."""
        return [json.loads(line) for line in (self.folder / model / "started").read_text().splitlines()]

    def option(self, model: str, name: str) -> str | None:
        arguments = self.started(model)[-1]
        return arguments[arguments.index(name) + 1] if name in arguments else None


@asynccontextmanager
async def kernel(
    folder: Path, *names: str, room_for: int = 100, pinned: str = "", **options: Any
) -> AsyncIterator[Kernel]:
    for name in names:
        (folder / name).mkdir()

    def find(name: str) -> LocalModel:
        return LocalModel(name, folder / name, f"sha256:{name}", "folder", 0, 0, 4096)

    options.setdefault("find", find)

    supervisor = Supervisor(folder)
    supervisor.start()
    engine = KernelEngine(
        [Wanted(name=name, tier=1, pinned=name in pinned) for name in names],
        hire=supervisor.worker,
        state_dir=folder,
        on_change=lambda: made.changes.extend((m.state, m.progress) for m in engine.models),
        limit_bytes=room_for * ONE_BYTES,
        **options,
    )
    made = Kernel(folder, engine)
    await engine.start()
    expected = len(names) + len(options.get("adapters", ()))
    await until(lambda: len(engine.models) >= expected or bool(engine.missing))
    try:
        yield made
    finally:
        await engine.close()
        await supervisor.close()
        assert made.pids() == []


async def until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)


async def ended(task: asyncio.Task[str]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_each_model_has_a_worker_of_its_own_that_starts_on_demand(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a", "b") as k:
        assert k.states() == {"a": "cold", "b": "cold"}
        assert await k.ask("b") == "b: hello"
        assert k.states() == {"a": "cold", "b": "warm"}
        assert await k.ask("a") == "a: hello"
        assert len(k.pids()) == 2
        with pytest.raises(EngineFailed, match="does not serve c"):
            await k.ask("c")


async def test_a_pinned_model_is_loaded_at_the_start(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a", "b", pinned="b") as k:
        await until(lambda: k.states() == {"a": "cold", "b": "warm"})


async def test_the_longest_unused_model_makes_room(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a", "b", "c", room_for=2) as k:
        for name in ("a", "b", "a", "c"):
            await k.ask(name)
        assert k.states() == {"a": "warm", "b": "cold", "c": "warm"}
        assert len(k.pids()) == 2
        assert await k.ask("b") == "b: hello"
        assert k.states() == {"a": "cold", "b": "warm", "c": "warm"}


async def test_a_pinned_model_stays(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a", "b", "c", room_for=2, pinned="a") as k:
        for name in ("a", "b", "c"):
            await k.ask(name)
        assert k.states() == {"a": "warm", "b": "cold", "c": "warm"}


async def test_a_model_in_use_is_never_unloaded_and_the_wait_for_it_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residents, "ROOM_WAIT_S", 0.3)
    async with kernel(tmp_path, "a", "b", room_for=1) as k:
        running = k.held("a")
        await until(lambda: k.states()["a"] == "warm")
        with pytest.raises(Unavailable, match="no room for b while a is in use") as refused:
            await k.ask("b")
        assert refused.value.retry_after_s > 0
        assert k.states()["a"] == "warm"
        await ended(running)


async def test_who_waits_for_room_gets_it_when_the_other_model_falls_idle(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a", "b", room_for=1) as k:
        running = k.held("a")
        await until(lambda: k.states()["a"] == "warm")
        waiting = asyncio.create_task(k.ask("b"))
        await until(lambda: k.engine.load.queued + k.engine.load.active == 2)
        await ended(running)
        assert await waiting == "b: hello"
        assert k.states() == {"a": "cold", "b": "warm"}


async def test_many_requests_for_many_models_in_room_for_one_are_all_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residents, "ROOM_WAIT_S", 60.0)
    async with kernel(tmp_path, "a", "b", "c", room_for=1) as k:
        names = ["a", "b", "c"] * 3
        assert await asyncio.gather(*map(k.ask, names)) == [f"{name}: hello" for name in names]
        assert list(k.states().values()).count("warm") == 1


async def test_a_model_that_is_too_large_alone_is_told_and_not_offered(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    engine = KernelEngine(
        [Wanted(name="big", tier=1)],
        hire=Supervisor(tmp_path).worker,
        state_dir=tmp_path,
        on_change=lambda: None,
        limit_bytes=ONE_BYTES,
        find=lambda name: LocalModel(name, tmp_path / name, "sha256:1", "folder", 0, 10**9, 4096),
    )
    await engine.start()
    await until(lambda: engine.info.state == "down")
    assert engine.models == ()
    assert "big needs about 5.4 GB of memory and memory_limit is 1.4 GB" in engine.missing
    await engine.close()


async def test_two_models_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    engine = KernelEngine(
        [Wanted(name="x/m", tier=1), Wanted(name="y/m", tier=1)],
        hire=Supervisor(tmp_path).worker,
        state_dir=tmp_path,
        on_change=lambda: None,
        find=lambda name: LocalModel("m", tmp_path / name, "sha256:1", "folder", 0, 0, 4096),
    )
    await engine.start()
    await until(lambda: "there is one already" in engine.missing)
    assert [model.name for model in engine.models] == ["m"]
    await engine.close()


async def test_workers_share_the_cores_and_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residents, "cores", lambda: 8)
    async with kernel(tmp_path, "a", "b", "c", room_for=6, precision="bf16") as k:
        for name in ("a", "b", "c"):
            await k.ask(name)
        assert [k.option(name, "--threads") for name in ("a", "b", "c")] == [None, "4", "2"]
        assert k.option("a", "--precision") == "bf16"
        share = 2 * ONE_BYTES - PROCESS_BYTES
        assert k.option("a", "--memory-bytes") == str(share)


async def test_a_gguf_is_llama_cpps_and_can_not_be_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_model, "LLAMACPP", "tests.worker_fake")
    (tmp_path / "m.gguf").mkdir()
    gguf = LocalModel("m", tmp_path / "m.gguf", "sha256:1", "file", 1000, 0, 2048, token_bytes=1000)
    async with kernel(tmp_path, "a", find=lambda _: gguf, threads=2) as k:
        assert not k.engine.info.can_continue
        with pytest.raises(InvalidInput, match="m makes no embeddings"):
            async with k.engine.embed({"model": "m", "input": "x"}):
                pass
        assert await k.ask("m") == "m: hello"
        assert k.option("m.gguf", "--context-length") == "2048"
        assert k.option("m.gguf", "--threads") == "2"
        assert k.option("m.gguf", "--precision") is None


async def test_slots_are_what_the_worker_says(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a") as k:
        (tmp_path / "a" / "slots").write_text("3")
        assert k.engine.load == Load(active=0, slots=1, queued=0), "no more is promised of a worker that is not there"
        running = [k.held("a") for _ in range(5)]
        await until(lambda: k.engine.load == Load(active=3, slots=3, queued=2))
        await asyncio.gather(*map(ended, running))
        assert k.engine.load == Load(active=0, slots=3, queued=0)


async def test_the_progress_of_a_load_is_told_in_tenths(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a") as k:
        progress = tmp_path / "a" / "progress"
        progress.write_text("0.37")
        asking = asyncio.create_task(k.ask("a"))
        await until(lambda: k.engine.models[0].progress == 0.3)
        progress.with_name("later").write_text("0.81")
        progress.with_name("later").replace(progress)
        await until(lambda: k.engine.models[0].progress == 0.8)
        assert k.engine.info.state == "starting"
        progress.unlink()
        await asking
        (model,) = k.engine.models
        assert (model.state, model.progress) == ("warm", None)
        assert ("loading", 0.8) in k.changes


async def test_adapters_are_models_of_their_own_on_their_bases_worker(tmp_path: Path) -> None:
    pirate = LocalAdapter("pirate", tmp_path / "p", "sha256:p", 1)
    poet = LocalAdapter("poet", tmp_path / "q", "sha256:q", 1, base="b")
    async with kernel(tmp_path, "a", "b", adapters=[pirate, poet]) as k:
        assert [model.name for model in k.engine.models] == ["a", "pirate", "b", "poet"]
        digests = {model.digest for model in k.engine.models}
        assert len(digests) == 4
        assert await k.ask("pirate") == "pirate: hello"
        assert k.states() == {"a": "warm", "pirate": "warm", "b": "cold", "poet": "cold"}
        assert f"--adapter=pirate={tmp_path / 'p'}" in k.started("a")[-1]
        assert not any("poet" in argument for argument in k.started("a")[-1])


async def test_a_model_that_has_an_adapters_name_is_not_served(tmp_path: Path) -> None:
    taken = LocalAdapter("b", tmp_path / "p", "sha256:p", 1)
    async with kernel(tmp_path, "a", "b", adapters=[taken]) as k:
        await until(lambda: "would be served as b, but there is one already" in k.engine.missing)
        assert [model.name for model in k.engine.models] == ["a", "b"]
        assert await k.ask("b") == "b: hello"
        assert len(k.started("a")) == 1, "the adapter's base answered"


async def test_embeddings_go_to_the_models_worker(tmp_path: Path) -> None:
    pirate = LocalAdapter("pirate", tmp_path / "p", "sha256:p", 1)
    async with kernel(tmp_path, "a", adapters=[pirate]) as k:
        async with k.engine.embed({"model": "a", "input": "x"}) as reply:
            assert reply.status == 200
            assert json.loads(b"".join([chunk async for chunk in reply.chunks]))["model"] == "a"
        with pytest.raises(InvalidInput, match="pirate makes no embeddings"):
            async with k.engine.embed({"model": "pirate", "input": "x"}):
                pass


@pytest.mark.parametrize("text", ["die", "die later"])
async def test_a_request_that_was_there_at_two_deaths_is_refused_the_third_time(tmp_path: Path, text: str) -> None:
    async with kernel(tmp_path, "a") as k:
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(WorkerDied, match="signal 9"):
                await k.ask("a", text)
            await until(lambda: k.states()["a"] == "warm")
            assert time.monotonic() - began < 10.0
        with pytest.raises(PoisonedRequest, match="2 times"):
            await k.ask("a", text)
        assert len(k.started("a")) == 3, "the third worker lives"
        assert await k.ask("a") == "a: hello"
        assert await k.ask("a", text="die quietly") == "a: die quietly", "another request is another one"


async def test_the_innocent_are_answered_and_the_culprit_is_found(tmp_path: Path) -> None:
    """After a death its witnesses run one at a time, so that the next death has one of them only."""
    async with kernel(tmp_path, "a") as k:
        await k.ask("a")
        innocent = [f"wait {number}" for number in range(4)]
        witnesses = [k.held("a", text) for text in innocent]
        await until(lambda: k.engine.load.active == 4)
        results = await asyncio.gather(k.held("a", "die"), *witnesses, return_exceptions=True)
        assert all(isinstance(result, WorkerDied) for result in results)
        (tmp_path / "a" / "go").touch()
        again = [k.held("a", text) for text in ("die", *innocent)]
        results = await asyncio.gather(*again, return_exceptions=True)
        assert isinstance(results[0], WorkerDied)
        assert results[1:] == [f"a: {text}" for text in innocent]
        with pytest.raises(PoisonedRequest):
            await k.ask("a", "die")


async def test_a_request_that_is_answered_in_between_is_cleared(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a") as k:
        await k.ask("a")
        for _ in range(3):
            (tmp_path / "a" / "go").unlink(missing_ok=True)
            slow = k.held("a", "wait")
            await until(lambda: k.states()["a"] == "warm" and k.engine.load.active == 1)
            os.kill(k.pids()[0], signal.SIGKILL)
            with pytest.raises(WorkerDied):
                await slow
            (tmp_path / "a" / "go").touch()
            assert await k.ask("a", "wait") == "a: wait"


async def test_a_request_that_its_worker_gives_up_is_no_death(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a") as k:
        for _ in range(3):
            with pytest.raises(EngineFailed, match="broke off") as failed:
                await k.ask("a", "fail")
            assert not isinstance(failed.value, WorkerDied)
        assert len(k.started("a")) == 1


async def test_a_worker_that_is_killed_again_and_again_is_back_each_time(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a") as k:
        for number in range(10):
            assert await k.ask("a", str(number)) == f"a: {number}"
            began = time.monotonic()
            os.kill(k.pids()[0], signal.SIGKILL)
            await until(lambda: k.states()["a"] != "warm")
            await until(lambda: k.states()["a"] == "warm")
            assert time.monotonic() - began < 8.0, "its start and a quarter of a second, on a busy machine"
