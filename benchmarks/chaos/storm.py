"""A mesh of four, clients that ask it in every API, faults meanwhile, and what is left when they are over."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from tests import tiny_model
from tests.openai_fake import FakeOpenAI

from benchmarks.chaos.dialects import DIALECTS, Dialect
from benchmarks.chaos.faults import COMPUTING, ROUTING, Journal, Pair, drawn, falling_ill
from benchmarks.chaos.ledger import HANG_S, Entry, Expected, Verdict, judge
from benchmarks.failover.daemons import Machine, cluster_of, started, until, until_well

CLIENTS = 6
TOKENS = 60
QUESTIONS = 24
"""For the model; servers are asked another one each time."""
THINK_S = (0.02, 0.2)
LEAVES, MOVES, PARROT = 0.08, 0.1, 0.3
"""Shares of requests: their client leaves in the middle, goes to another node afterwards, asks a server."""
LEAVES_AFTER = 400
"""Bytes; the shortest answers have more."""
QUIET_S = 20.0
"""After the last fault and the last answer: until nobody works on anything, and everybody answers."""
LIMITS = {"stall_timeout_s": 2, "queue_timeout_s": 15, "first_token_timeout_s": 10}


@dataclass(frozen=True, slots=True)
class Outcome:
    """`left_over`: what is not as it was before the faults."""

    verdict: Verdict
    journal: Journal
    left_over: list[str]

    @property
    def told(self) -> str:
        """For a person."""
        faults = ", ".join(f"{count} x {what}" for what, count in sorted(self.journal.counts.items()))
        return "\n".join([f"faults: {faults}", self.verdict.told, *(f"left over: {each}" for each in self.left_over)])


class Storm:
    """`machines`: two that compute and two that route, each of those beside a server."""

    def __init__(
        self, seed: int, machines: dict[str, Machine], servers: Sequence[FakeOpenAI], http: aiohttp.ClientSession
    ) -> None:
        self._seed = seed
        self._machines = machines
        self._servers = servers
        self._http = http
        self._ledger: list[Entry] = []
        self._expected: dict[str, Expected] = {}
        self._journal = Journal()

    async def run(self, seconds: float) -> Outcome:
        """Faults for so long, then the verdict."""
        await self._learn()
        over = asyncio.Event()
        clients = [asyncio.create_task(self._client(number, over)) for number in range(CLIENTS)]
        ends, everybody = time.monotonic() + seconds, tuple(self._machines.values())
        one, two, desk, door = everybody
        computing = Pair((one, two), everybody, ("one", "two"), self._journal, self._http)
        routing = Pair((desk, door), everybody, (), self._journal, self._http)
        async with falling_ill(f"{self._seed} servers", self._servers, self._journal, ends):
            await asyncio.gather(
                computing.suffer(drawn(f"{self._seed} computing", COMPUTING), ends),
                routing.suffer(drawn(f"{self._seed} routing", ROUTING), ends),
            )
        over.set()
        await asyncio.wait(clients, timeout=HANG_S + 1)
        verdict = judge(self._ledger, self._expected, {each.name: each.deaths for each in everybody})
        left_over = await self._left_over()
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        return Outcome(verdict, self._journal, left_over)

    async def _learn(self) -> None:
        """What is said when nothing is wrong."""
        for number in range(QUESTIONS):
            text = f"the quick brown fox number {number}"
            body = DIALECTS[1].body("tiny", text, TOKENS, 1.0)
            async with self._http.post(f"{self._machines['one'].url}{DIALECTS[1].path}", json=body) as reply:
                reading = DIALECTS[1].read(await reply.read())
            assert reading.ended, "the model answers before anything is harmed"
            assert reading.tokens is not None
            self._expected[text] = Expected(reading.text, reading.tokens)

    async def _client(self, number: int, over: asyncio.Event) -> None:
        """Ask, think, ask; turn to another node when one is gone, and sometimes without a reason."""
        chance, entries = random.Random(f"{self._seed} client {number}"), list(self._machines.values())
        turn = number
        for count in range(1_000_000):
            if over.is_set():
                return
            entry = await self._ask(chance, entries[turn % len(entries)], number, count)
            turn += bool(entry.trouble) or chance.random() < MOVES
            await asyncio.sleep(chance.uniform(*THINK_S))

    async def _ask(self, chance: random.Random, through: Machine, client: int, count: int) -> Entry:
        dialect, model = chance.choice(DIALECTS), "tiny"
        question = f"the quick brown fox number {chance.randrange(QUESTIONS)}"
        if chance.random() < PARROT:
            model, question = "parrot", f"say this: client {client} asks for the {count}th time"
            words = question.split()
            self._expected[question] = Expected(f"parrot: {' '.join(words)}", 1 + len(words))
        leaves = "streamed" in dialect.name and model == "tiny" and chance.random() < LEAVES
        share = 1.0 - (count * CLIENTS + client + 1) / 10_000_000
        entry = Entry(f"{client}-{count}", dialect.name, through.name, model, question, time.monotonic())
        self._ledger.append(entry)
        await self._exchange(entry, dialect, through.url, dialect.body(model, question, TOKENS, share), leaves=leaves)
        return entry

    async def _exchange(self, entry: Entry, dialect: Dialect, url: str, body: dict[str, Any], *, leaves: bool) -> None:
        """Send, and write down whatever comes back."""
        headers = {"X-Request-Id": entry.id}
        try:
            async with (
                asyncio.timeout(HANG_S + 1),
                self._http.post(url + dialect.path, json=body, headers=headers) as reply,
            ):
                entry.status = reply.status
                async for piece in reply.content.iter_any():
                    entry.received += piece
                    if leaves and len(entry.received) > LEAVES_AFTER:
                        entry.left = True
                        reply.close()
                        break
        except (aiohttp.ClientError, OSError) as error:  # a time limit among them
            entry.trouble = f"{type(error).__name__}: {error}"
        entry.ended = time.monotonic()

    async def _left_over(self) -> list[str]:
        """What does not come to rest, or does not answer, within the time for it."""
        found = []
        for problem in (self._unwell, self._unanswered, self._busy):
            told = ["not looked at"]

            async def at_rest(look: Callable[[], Awaitable[list[str]]] = problem) -> bool:
                nonlocal told
                told = await look()
                return not told

            with suppress(TimeoutError):
                await until(at_rest, QUIET_S)
            found += told
        return found + self._orphans()

    async def _unwell(self) -> list[str]:
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET_S):
                await until_well(self._http, self._machines.values(), warm=("one", "two"))
                return []
        return [f"not everybody is well: {await cluster_of(self._http, self._machines['desk'])}"]

    async def _unanswered(self) -> list[str]:
        """Both models, through every node."""
        problems = []
        for machine in self._machines.values():
            for model, text in (("tiny", "the quick brown fox number 0"), ("parrot", "still there")):
                self._expected.setdefault("still there", Expected("parrot: still there", 3))
                entry = Entry("after", DIALECTS[0].name, machine.name, model, text, time.monotonic())
                body = DIALECTS[0].body(model, text, TOKENS, random.uniform(0.9, 1.0))
                await self._exchange(entry, DIALECTS[0], machine.url, body, leaves=False)
                verdict = judge([entry], self._expected, {})
                if verdict.share_whole(model) < 1 or verdict.violations:
                    problems.append(f"{model} through {machine.name}: {verdict.told} {bytes(entry.received[:300])!r}")
        return problems

    async def _busy(self) -> list[str]:
        """Requests that some node or server still has, though nobody waits for an answer."""
        problems = []
        for machine in self._machines.values():
            async with self._http.get(f"{machine.url}/metrics") as reply:
                lines = (await reply.text()).splitlines()
            names = ("tiermesh_engine_active ", "tiermesh_engine_queued ", "tiermesh_waiting{")
            problems += [
                f"{machine.name}: {line}" for line in lines if line.startswith(names) and float(line.split()[-1])
            ]
            for node in (await cluster_of(self._http, machine)).get("nodes", ()):
                if node["load"]["active"] or node["load"]["queued"]:
                    problems.append(f"{machine.name} says of {node['name']}: {node['load']}")
        for server in self._servers:
            running = server.started - server.finished - server.abandoned - server.hung_up
            problems += [f"a server has {running} requests"] if running else []
        return problems

    def _orphans(self) -> list[str]:
        """Processes of this mesh whose daemon is gone."""
        folder, ours = (
            str(self._machines["one"].folder),
            {os_pid for m in self._machines.values() for os_pid in m.family()},
        )
        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            command = " ".join(process.info["cmdline"] or ())
            if folder in command and process.info["pid"] not in ours:
                found.append(f"an orphan: {process.info['pid']} {command[:200]}")
        return found


async def run(seconds: float, seed: int) -> Outcome:
    """The whole of it, in a folder that is removed."""
    with tempfile.TemporaryDirectory(prefix="tiermesh-chaos-") as name:
        folder = Path(name)
        model = tiny_model.build_folder(folder / "tiny")
        config, plain = folder / "kernel.yaml", folder / "plain.yaml"
        limits = f"limits: {json.dumps(LIMITS)}\n"
        config.write_text(f"models:\n  - name: {json.dumps(str(model))}\n    pinned: true\n{limits}", encoding="utf-8")
        plain.write_text(limits, encoding="utf-8")
        async with FakeOpenAI("parrot", "parrot") as left, FakeOpenAI("parrot", "parrot") as right:
            serve = ("--config", str(config), "--precision", "fp32")
            doors = [("--config", str(plain), "--engine", server.url) for server in (left, right)]
            options = {"one": serve, "two": serve, "desk": doors[0], "door": doors[1]}
            connector = aiohttp.TCPConnector(limit=0)
            limit = aiohttp.ClientTimeout(total=None)
            async with (
                started(folder, options) as machines,
                aiohttp.ClientSession(timeout=limit, connector=connector) as http,
            ):
                await until_well(http, machines.values(), warm=machines)
                return await Storm(seed, machines, (left, right), http).run(seconds)
