"""Real daemons, real workers: a machine dies while it answers, and no reader notices."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tiermesh.client import RemoteClient

pytest.importorskip("torch")
from tests import tiny_model

LIMIT_S = 90.0
STREAMS = 16
TOKENS = 300


@dataclass
class Machine:
    """One daemon in a process of its own."""

    name: str
    process: asyncio.subprocess.Process
    url: str


@dataclass
class Heard:
    """One stream as its client got it."""

    node: str = ""
    text: str = ""
    ids: set[str] = field(default_factory=set)
    chunks: int = 0
    reason: str | None = None
    completion_tokens: int | None = None
    error: object = None
    done: bool = False
    longest_pause_s: float = 0.0


@asynccontextmanager
async def machine(folder: Path, cluster: str, name: str, *options: str) -> AsyncIterator[Machine]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")}
    command = [sys.executable, "-m", "tiermesh.cli.main", "up", "--name", name, "--cluster", cluster, "--port", "0"]
    command += ["--interface", "127.0.0.1", "--no-detect", "--state-dir", str(folder / name), *options]
    with (folder / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, cwd=folder, env=env, stdout=log, stderr=log)
    note = folder / name / "runtime.json"
    try:
        async with asyncio.timeout(LIMIT_S):
            while not note.exists():
                assert process.returncode is None, (folder / f"{name}.log").read_text()
                await asyncio.sleep(0.02)
        yield Machine(name, process, json.loads(note.read_text())["url"])
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.wait()


@asynccontextmanager
async def mesh(folder: Path) -> AsyncIterator[tuple[Machine, dict[str, Machine]]]:
    """`desk`, which only routes, and two machines with the same weights, loaded."""
    cluster, model = f"test-{secrets.token_hex(4)}", str(tiny_model.build_folder(folder / "tiny"))
    serve = ("--model", model, "--precision", "fp32")
    async with (
        machine(folder, cluster, "desk", "--no-engine") as desk,
        machine(folder, cluster, "one", *serve) as one,
        machine(folder, cluster, "two", *serve) as two,
    ):
        for serving in (one, two):
            async with RemoteClient(serving.url, timeout_s=LIMIT_S) as client:
                await client.complete("wake up", max_tokens=1)
        async with RemoteClient(desk.url) as client, asyncio.timeout(LIMIT_S):
            while sum(m.state == "warm" for n in (await client.cluster()).nodes for m in n.models) < 2:
                await asyncio.sleep(0.05)
        yield desk, {"one": one, "two": two}


def body(number: int) -> dict[str, Any]:
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": f"the quick brown fox {number}"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": TOKENS,
        "temperature": 0,
        "logit_bias": {str(tiny_model.END): -100},
    }


async def listen(http: aiohttp.ClientSession, url: str, number: int, heard: Heard) -> Heard:
    loop = asyncio.get_running_loop()
    async with http.post(f"{url}/v1/chat/completions", json=body(number)) as reply:
        assert reply.status == 200, await reply.text()
        heard.node, last = reply.headers["X-Mesh-Node"], loop.time()
        async for line in reply.content:
            now = loop.time()
            heard.longest_pause_s, last = max(heard.longest_pause_s, now - last), now
            if not line.startswith(b"data: "):
                continue
            assert not heard.done
            if line.strip() == b"data: [DONE]":
                heard.done = True
                continue
            chunk = json.loads(line[6:])
            heard.error = chunk.get("error", heard.error)
            heard.chunks += 1
            heard.ids.add(chunk.get("id"))
            for choice in chunk.get("choices", ()):
                heard.text += choice["delta"].get("content") or ""
                heard.reason = choice["finish_reason"] or heard.reason
            if chunk.get("usage"):
                heard.completion_tokens = chunk["usage"]["completion_tokens"]
    return heard


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_sixteen_streams_survive_their_machine(tmp_path: Path, fault: signal.Signals) -> None:
    """Killed or frozen: every text equals the undisturbed one, figures are exact, and nobody is told."""
    async with mesh(tmp_path) as (desk, machines), aiohttp.ClientSession() as http:
        if fault == signal.SIGSTOP:
            async with RemoteClient(desk.url) as client:
                applied = await client.set_policy({"limits": {"stall_timeout_s": 2}})
                while (await client.policy()).version < applied.version:
                    await asyncio.sleep(0.02)
        heard = [Heard() for _ in range(STREAMS)]
        streams = [asyncio.create_task(listen(http, desk.url, n, each)) for n, each in enumerate(heard)]
        async with asyncio.timeout(LIMIT_S):
            while any(each.chunks < 5 for each in heard):
                await asyncio.sleep(0.005)
        nodes = [each.node for each in heard if not each.done]
        assert nodes, "some still run"
        machines[max(nodes, key=nodes.count)].process.send_signal(fault)
        await asyncio.gather(*streams)
        alone = [await listen(http, desk.url, number, Heard()) for number in range(STREAMS)]
        assert [each.error for each in heard] == [None] * STREAMS
        assert all(each.done and len(each.ids) == 1 and each.reason == "length" for each in heard)
        assert [each.completion_tokens for each in heard] == [TOKENS] * STREAMS
        assert [each.text for each in heard] == [each.text for each in alone]
        print(
            f"{fault.name}: {nodes.count(max(nodes, key=nodes.count))} moved, longest pause "
            f"{max(each.longest_pause_s for each in heard):.2f} s"
        )
