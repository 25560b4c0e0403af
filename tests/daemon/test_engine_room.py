"""From a node's options to its kernel: models, adapters, memory, and a clear word where something is not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tiermesh.adapters.engines import kernel, served_model
from tiermesh.adapters.lora_folder import read_adapter
from tiermesh.adapters.model_source import resolve
from tiermesh.config import Flags, resolve_options
from tiermesh.daemon.engine_room import EngineRoom
from tiermesh.errors import InvalidConfig, InvalidInput, UnknownModel
from tiermesh.types import Model

GIB = 1 << 30


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(served_model, "TORCH", "tests.worker_fake")
    monkeypatch.setenv("TIERMESH_CACHE", str(tmp_path / "cache"))


def model_folder(folder: Path) -> Path:
    """Without a single weight, but complete."""
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 64}')
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def adapter_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


@asynccontextmanager
async def room(tmp_path: Path, text: str, **flags: Any) -> AsyncIterator[EngineRoom]:
    """The engine room of a node with this file, opened."""
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    (tmp_path / "state").mkdir(exist_ok=True)
    options = resolve_options(Flags(config=file, state_dir=tmp_path / "state", no_detect=True, **flags), {})
    made = EngineRoom(options, tier=1, on_change=lambda: None)
    try:
        await made.open()
        yield made
    finally:
        await made.close()


async def found(room: EngineRoom, wanted: Callable[[tuple[Model, ...]], bool]) -> tuple[Model, ...]:
    async with asyncio.timeout(15.0):
        while not wanted(room.engines["kernel"].models):
            await asyncio.sleep(0.005)
    return room.engines["kernel"].models


async def test_models_and_adapters_of_the_file_are_served(tmp_path: Path) -> None:
    a, b = model_folder(tmp_path / "a"), model_folder(tmp_path / "b")
    file = f"""
models: [{{name: {a}, tier: 2}}, {{name: {b}, pinned: true}}]
adapters: [{{name: poet, path: {adapter_folder(tmp_path / "p")}, base: {b}}}]
precision: bf16
memory_limit: 8 GiB
"""
    async with room(tmp_path, file) as opened:
        models = await found(opened, lambda models: len(models) == 3 and models[1].state == "warm")
        assert [(m.name, m.tier, m.state) for m in models] == [
            ("a", 2, "cold"),
            ("b", 1, "warm"),
            ("poet", 1, "warm"),
        ]
        started = (b / "started").read_text()
        assert f"--adapter=poet={tmp_path / 'p'}" in started
        assert '"--precision", "bf16"' in started
        assert f'"--memory-bytes", "{4 * GIB - 1200 * (1 << 20)}"' in started


async def test_a_folder_that_is_no_adapter_is_told_at_the_start(tmp_path: Path) -> None:
    file = f"model: {model_folder(tmp_path / 'a')}\nadapters: [{{name: poet, path: {tmp_path}}}]"
    with pytest.raises(InvalidConfig, match=r"poet: .* has no adapter_config.json") as told:
        async with room(tmp_path, file):
            pass
    assert told.value.param == "adapters[0].path"


async def test_a_model_that_nobody_can_fetch_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="no model nosuch"):
        async with room(tmp_path, f"models: [{{name: {model_folder(tmp_path / 'a')}}}, {{name: nosuch}}]"):
            pass


async def test_without_torch_a_model_that_was_asked_for_is_a_mistake_and_the_default_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "NEEDED", ("no_such_package",))
    async with room(tmp_path, "") as opened:
        assert list(opened) == []
        assert "no_such_package" in opened.no_engine_reason
    with pytest.raises(InvalidConfig, match=r"can't run .*/a: the built-in kernel needs no_such_package"):
        async with room(tmp_path, f"model: {model_folder(tmp_path / 'a')}"):
            pass


async def test_a_node_that_ran_no_models_itself_holds_what_it_trained_from(tmp_path: Path) -> None:
    """It had another engine, so its kernel was not needed so far."""
    base = model_folder(tmp_path / "base")
    digest = resolve(str(base)).digest
    async with room(tmp_path, "engines: [{url: 'http://127.0.0.1:9', kind: openai}]") as opened:
        assert set(opened.engines) == {"127.0.0.1-9"}
        assert not opened.holds(str(base), digest)
        await opened.hold(str(base), digest)
        assert opened.holds(str(base), digest)
        adapter = read_adapter("poet", str(adapter_folder(tmp_path / "p")), "base", digest, "JOB")
        await opened.add_adapter(adapter)
        await opened.hold(str(base), digest)
        models = opened.engines["kernel"].models
        assert [(model.name, model.state, model.job) for model in models] == [
            ("base", "cold", ""),
            ("poet", "cold", "JOB"),
        ]
        with pytest.raises(InvalidInput, match="base has the digest"):
            await opened.hold("base", "sha256:other")
        with pytest.raises(UnknownModel, match="no model elsewhere"):
            await opened.hold("elsewhere", "sha256:other")


async def test_a_node_whose_kernel_is_switched_off_holds_nothing(tmp_path: Path) -> None:
    async with room(tmp_path, "", no_engine=True) as opened:
        with pytest.raises(UnknownModel, match="runs no models itself: its kernel is switched off"):
            await opened.hold(str(model_folder(tmp_path / "base")), "")
        assert list(opened) == []
