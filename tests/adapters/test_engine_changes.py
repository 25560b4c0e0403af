"""Adapters and models that come to the kernel's engine and go while it serves, with scripted workers."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from tests.adapters.test_kernel_engine import Kernel, ended, kernel, until

from tiermesh.adapters.engines import served_model
from tiermesh.adapters.lora_folder import LocalAdapter
from tiermesh.adapters.model_source import LocalModel
from tiermesh.errors import EngineFailed, InvalidInput, ModelSourceFailed, NameTaken, UnknownModel


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_model, "TORCH", "tests.worker_fake")


def adapter(name: str, *, base: str | None = None, digest: str = "sha256:a") -> LocalAdapter:
    return LocalAdapter(name, Path("/adapters") / name, f"sha256:of {name}", 1, base, digest)


def model(k: Kernel, name: str) -> LocalModel:
    (k.folder / f"folder of {name}").mkdir()
    return LocalModel(name, k.folder / f"folder of {name}", f"sha256:{name}", "folder", 0, 0, 4096)


async def held_by(k: Kernel) -> list[str]:
    """What the worker of the first model says that it has."""
    connector = aiohttp.UnixConnector(str(k.folder / "kernel-0.sock"))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://w/health") as response:
        names: list[str] = (await response.json())["adapters"]
        return names


async def test_an_adapter_comes_to_a_worker_that_runs_without_a_restart(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a") as k:
        running = k.held("a")
        await until(lambda: k.states() == {"a": "warm"})
        await k.engine.add_adapter(adapter("pirate:v1"))
        assert k.states() == {"a": "warm", "pirate:v1": "warm"}
        assert await k.ask("pirate:v1") == "pirate:v1: hello"
        assert await held_by(k) == ["pirate:v1"]
        await k.engine.drop_adapter("pirate:v1")
        assert k.states() == {"a": "warm"}
        assert await held_by(k) == []
        with pytest.raises(EngineFailed, match="does not serve pirate"):
            await k.ask("pirate:v1")
        assert len(k.started("a")) == 1
        assert not running.done()
        await ended(running)


async def test_an_adapter_of_a_cold_model_is_given_at_its_start(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a") as k:
        await k.engine.add_adapter(adapter("pirate"))
        assert k.states() == {"a": "cold", "pirate": "cold"}
        assert await k.ask("pirate") == "pirate: hello"
        assert "--adapter=pirate=/adapters/pirate" in k.started("a")[0]


async def test_a_worker_that_was_killed_starts_with_all_that_came_and_went(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a", adapters=[adapter("first"), adapter("second")]) as k:
        await k.ask("a")
        await k.engine.add_adapter(adapter("third"))
        await k.engine.drop_adapter("first")
        os.kill(k.pids()[0], signal.SIGKILL)
        await until(lambda: len(k.started("a")) == 2)
        assert await k.ask("third") == "third: hello"
        assert [x for x in k.started("a")[1] if x.startswith("--adapter")] == [
            "--adapter=second=/adapters/second",
            "--adapter=third=/adapters/third",
        ]


async def test_what_comes_and_goes_while_a_worker_starts_is_caught_up_with(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a", adapters=[adapter("early")]) as k:
        (tmp_path / "a" / "progress").write_text("0.5")
        asked = k.held("a", "hello")
        await until(lambda: k.states()["a"] == "loading")
        await k.engine.add_adapter(adapter("late"))
        await k.engine.add_adapter(adapter("bad"))
        await k.engine.drop_adapter("early")
        (tmp_path / "a" / "progress").unlink()
        assert await asked == "a: hello"
        assert await held_by(k) == ["late"]
        assert k.states() == {"a": "warm", "late": "warm"}  # the worker refused the other


async def test_what_the_worker_refuses_is_told_and_not_served(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a") as k:
        await k.ask("a")
        with pytest.raises(InvalidInput, match="bad is for another model"):
            await k.engine.add_adapter(adapter("bad"))
        assert k.states() == {"a": "warm"}
        await k.engine.add_adapter(adapter("good"))


async def test_an_adapter_goes_to_the_model_with_the_weights_that_it_was_trained_on(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a", "b") as k:
        await k.engine.add_adapter(adapter("pirate", base="a", digest="sha256:b"))
        digests = {model.name: model.digest for model in k.engine.models}
        assert digests["pirate"] == adapter("pirate").digest_on("sha256:b")
        with pytest.raises(UnknownModel, match="trained on a with the digest sha256:x, and a has sha256:a here"):
            await k.engine.add_adapter(adapter("poet", base="a", digest="sha256:x"))
        with pytest.raises(UnknownModel, match="poet needs c, which this node does not serve"):
            await k.engine.add_adapter(adapter("poet", base="c", digest=""))


async def test_an_adapter_may_wait_for_its_model(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a") as k:
        await k.engine.add_adapter(adapter("pirate", digest="sha256:b"), later=True)
        assert k.states() == {"a": "cold"}
        await k.engine.add_model(model(k, "b"), 1)
        assert k.states() == {"a": "cold", "b": "cold", "pirate": "cold"}


@pytest.mark.parametrize("name", ["a", "pirate"])
async def test_a_name_that_is_taken_is_refused(tmp_path: Path, name: str) -> None:
    async with kernel(tmp_path, "a", adapters=[adapter("pirate")]) as k:
        with pytest.raises(NameTaken, match=f"{name} is served on this node already"):
            await k.engine.add_adapter(adapter(name))
        with pytest.raises(NameTaken):
            await k.engine.add_model(model(k, name), 1)
        with pytest.raises(UnknownModel):
            await k.engine.drop_adapter("nobody")


async def test_models_come_and_go(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a", room_for=1) as k:
        await k.ask("a")
        await k.engine.add_model(model(k, "b"), 2)
        assert [(m.name, m.tier, m.state) for m in k.engine.models] == [("a", 1, "warm"), ("b", 2, "cold")]
        assert await k.ask("b") == "b: hello"
        assert k.states() == {"a": "cold", "b": "warm"}
        assert set(k.engine.used) == {"a", "b"}
        await k.engine.drop_model("b")
        assert k.states() == {"a": "cold"}
        assert k.pids() == []
        assert await k.ask("a") == "a: hello"
        with pytest.raises(UnknownModel):
            await k.engine.drop_model("b")
        again = replace(model(k, "c"), name="b")
        await k.engine.add_model(again, 2)  # other weights under the name that was free again
        assert await k.ask("b") == "b: hello"


async def test_a_model_that_is_dropped_finishes_what_it_is_saying(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a") as k:
        local = model(k, "b")
        await k.engine.add_model(local, 1)
        speaking = k.held("b", "wait")
        await until(lambda: k.states()["b"] == "warm")
        dropping = asyncio.create_task(k.engine.drop_model("b"))
        await until(lambda: k.states() == {"a": "cold"})
        (local.path / "go").touch()
        assert await speaking == "b: wait"
        await dropping
        assert k.pids() == []


async def test_a_model_that_is_too_large_for_this_node_is_refused(tmp_path: Path) -> None:
    async with kernel(tmp_path, "a", room_for=1) as k:
        large = replace(model(k, "b"), parameters=10**12)
        with pytest.raises(ModelSourceFailed, match="raise the limit"):
            await k.engine.add_model(large, 1)
        assert k.states() == {"a": "cold"}
