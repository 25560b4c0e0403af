"""One fault under load, and what each client noticed of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp

from benchmarks.failover.daemons import Machine, coordinator_of, started, until, until_well
from benchmarks.failover.hearing import Heard, listen, question
from benchmarks.kernel.prompts import prompts

STREAMS = 16
BEGUN = 5
"""Chunks that every stream has before a machine is harmed."""
STALL_S = 2.0
RATE = 20.0
"""Requests a second while a coordinator dies."""
SHORT = 12
"""Tokens of each of them."""

Fault = Literal["SIGKILL", "SIGSTOP"]


@dataclass(frozen=True, slots=True)
class Served:
    """A mesh with a model: `desk` routes, `one` and `two` compute."""

    http: aiohttp.ClientSession
    machines: dict[str, Machine]
    model: str

    @property
    def desk(self) -> Machine:
        return self.machines["desk"]

    async def until_well(self) -> None:
        """Everybody is up, and both have the model in memory."""
        await until_well(self.http, self.machines.values(), warm=("one", "two"))


@dataclass(frozen=True, slots=True)
class Survived:
    """Sixteen streams after a fault. `cuts`: how many tokens each client had when it happened."""

    heard: list[Heard]
    cuts: list[int]
    moved: int
    pause_s: float
    prefill_s: float
    """The longest wait for a first word, of these streams before the fault."""


@dataclass(frozen=True, slots=True)
class Lost:
    """What clients saw of a coordinator's death. `before_s`: the longest pause in answers that were whole before it,
    which is the machine's own doing."""

    requests: int
    failures: list[str]
    pause_s: float
    before_s: float
    served_by_it: int


@asynccontextmanager
async def serving(folder: Path, model: str, precision: Literal["fp32", "bf16"]) -> AsyncIterator[Served]:
    """The mesh, its model in memory. `model`: a name or a folder."""
    config = folder / "cluster.yaml"
    limits = f"limits:\n  stall_timeout_s: {STALL_S}\n"
    config.write_text(f"models:\n  - name: {json.dumps(model)}\n    pinned: true\n{limits}", encoding="utf-8")
    serve = ("--config", str(config), "--precision", precision)
    options = {"one": serve, "two": serve, "desk": ("--config", str(config), "--no-engine")}
    limit = aiohttp.ClientTimeout(total=None)
    async with (
        started(folder, options) as machines,
        aiohttp.ClientSession(timeout=limit, connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        served = Served(http, machines, Path(model).name)
        await served.until_well()
        yield served


def questions(count: int) -> list[str]:
    """No two alike."""
    return [text for text, _ in zip(prompts(), range(count), strict=False)]


async def undisturbed(served: Served, texts: Sequence[str], tokens: int) -> list[Heard]:
    """What is said when nothing is wrong."""
    bodies = [question(served.model, text, tokens) for text in texts]
    return await asyncio.gather(*(listen(served.http, served.desk.url, body, Heard()) for body in bodies))


async def sixteen_streams(served: Served, texts: Sequence[str], tokens: int, fault: Fault) -> Survived:
    """Harm the machine that has most of them, once all have begun; in the end all machines are well again."""
    heard = [Heard() for _ in texts]
    streams = [
        asyncio.create_task(listen(served.http, served.desk.url, question(served.model, text, tokens), one))
        for text, one in zip(texts, heard, strict=True)
    ]
    await until(lambda: all(one.chunks >= BEGUN or one.error for one in heard))
    prefill_s = max(one.first_s for one in heard)
    nodes = [one.node for one in heard if not one.done]
    if not nodes:
        raise RuntimeError("every stream ended before a machine could be harmed: ask for more tokens")
    cuts = [len(one.tokens) for one in heard]
    for one in heard:
        one.pause_s = 0.0
    victim = served.machines[max(nodes, key=nodes.count)]
    if fault == "SIGKILL":
        await victim.kill()
    else:
        victim.freeze()
    await asyncio.gather(*streams)
    if fault == "SIGKILL":
        await victim.start()
    else:
        victim.thaw()
    await served.until_well()
    return Survived(heard, cuts, nodes.count(victim.name), max(one.pause_s for one in heard), prefill_s)


async def coordinator_lost(served: Served, seconds: float) -> Lost:
    """Kill whoever leads in the middle of steady short requests through the others, half of them streamed."""
    leader = await coordinator_of(served.http, served.machines.values())
    assert leader is not None, "a mesh that is well has a coordinator"
    entries = [machine for machine in served.machines.values() if machine.name != leader]
    loop, asked, heard = asyncio.get_running_loop(), list[asyncio.Task[Heard]](), list[Heard]()
    began, count, before_s = loop.time(), int(seconds * RATE), 0.0
    for number in range(count):
        await asyncio.sleep(began + number / RATE - loop.time())
        body = question(served.model, f"number {number} of {began}", SHORT)
        one, url = Heard(), entries[number // 2 % len(entries)].url
        heard.append(one)
        asking = listen(served.http, url, body, one) if number % 2 else _whole(served.http, url, body, one)
        asked.append(asyncio.create_task(asking))
        if number == count // 2:
            before_s = max((one.pause_s for one in heard if one.done), default=0.0)
            await served.machines[leader].kill()
    await asyncio.gather(*asked)
    await served.machines[leader].start()
    await served.until_well()
    failures = [one.error or "not whole" for one in heard if not one.whole or one.told != SHORT]
    longest_s, served_by_it = max(one.pause_s for one in heard), sum(one.node == leader for one in heard)
    return Lost(count, failures, longest_s, before_s, served_by_it)


async def _whole(http: aiohttp.ClientSession, url: str, body: dict[str, object], heard: Heard) -> Heard:
    """The same question, its answer in one piece: all of its time is one pause."""
    began = time.monotonic()
    plain = {key: value for key, value in body.items() if key not in ("stream", "stream_options")}
    try:
        async with http.post(f"{url}/v1/chat/completions", json=plain) as reply:
            heard.node = reply.headers.get("X-Mesh-Node", "")
            told = await reply.json()
        choice = told["choices"][0]
        heard.text, heard.tokens, heard.reason = (
            choice["message"]["content"],
            choice["token_ids"],
            choice["finish_reason"],
        )
        heard.told, heard.done = told["usage"]["completion_tokens"], True
        heard.identities.add((told["id"],))
    except (aiohttp.ClientError, OSError, ValueError, LookupError, TimeoutError) as error:
        heard.error = f"{type(error).__name__}: {error}"
    heard.pause_s = time.monotonic() - began
    return heard
