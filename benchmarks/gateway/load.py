"""Load, and what became of it. The same for everybody: raw requests made before the clock starts."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from statistics import median, quantiles

from benchmarks.gateway.exchange import answer, events_of, question, text_of
from benchmarks.gateway.wire import Connection, Reply

PREPARED = 512
"""Different requests, asked in turn: an answer that belongs to another one is noticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Who is asked. `exact`: passes on what the upstream says byte by byte; of others the text must be right."""

    name: str
    host: str
    port: int
    exact: bool = True
    headers: tuple[tuple[str, str], ...] = ()

    def request(self, body: bytes) -> bytes:
        """As it goes over the wire."""
        head = [
            "POST /v1/chat/completions HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        return "\r\n".join([*head, "", ""]).encode() + body


@dataclass(slots=True)
class Run:
    """Requests against one target: seconds until first and last byte of each, and what was wrong."""

    took_s: float = 0.0
    first_s: list[float] = field(default_factory=list)
    done_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    cpu_s: float = 0.0
    events: int = 0
    """Events of streams that came."""
    at_once: int = 0
    """Connections."""

    @property
    def requests(self) -> int:
        return len(self.done_s)

    @property
    def per_s(self) -> float:
        return self.requests / self.took_s

    def p50_ms(self, *, first: bool = False) -> float:
        return median(self.first_s if first else self.done_s) * 1000

    def p99_ms(self, *, first: bool = False) -> float:
        return quantiles(self.first_s if first else self.done_s, n=100)[98] * 1000

    def note(self, reply: Reply, problem: str | None) -> None:
        self.first_s.append(reply.first_s)
        self.done_s.append(reply.done_s)
        if problem is not None:
            self.wrong.append(problem)


async def run_requests(target: Target, connections: int, turns: Iterator[int]) -> Run:
    """A closed loop: each connection asks again as soon as it has its answer, until `turns` ends."""
    prepared = [target.request(question(number)) for number in range(PREPARED)]
    run = Run()

    async def ask_on(connection: Connection) -> None:
        for turn in turns:
            number = turn % PREPARED
            reply = await connection.ask(prepared[number])
            run.note(reply, problem_of(reply, answer(number), exact=target.exact))

    await _on_connections(target, connections, run, ask_on)
    return run


def for_seconds(seconds: float) -> Iterator[int]:
    """Turns until the time is up."""
    ends = time.perf_counter() + seconds
    for turn in itertools.count():
        if time.perf_counter() >= ends:
            return
        yield turn


async def run_streams(target: Target, connections: int, *, rounds: int, events: int, lasts_s: float) -> Run:
    """As many streams at once as connections, `rounds` of them on each, one after the other.

    They begin spread over the `lasts_s` that one takes, as people do: the wait for a first event is then that of one
    who comes while the others are being served, not that of the last in a crowd.
    """
    run = Run()
    places, numbers = itertools.count(), itertools.count()

    async def read_on(connection: Connection) -> None:
        await asyncio.sleep(lasts_s * next(places) / connections)
        for _ in range(rounds):
            number = next(numbers)
            reply = await connection.ask(target.request(question(number, events=events)))
            run.note(reply, problem_of(reply, b"".join(events_of(number, events)), exact=target.exact))
            run.events += reply.body.count(b"\n\n")

    await _on_connections(target, connections, run, read_on)
    return run


def problem_of(reply: Reply, expected: bytes, *, exact: bool) -> str | None:
    """What is wrong with an answer."""
    if reply.status != 200:
        return f"HTTP {reply.status}: {reply.body[:200]!r}"
    if reply.body == expected:
        return None
    if exact:
        at = next((i for i, (a, b) in enumerate(itertools.zip_longest(reply.body, expected)) if a != b), 0)
        return f"changed at byte {at}: {reply.body[at : at + 80]!r} instead of {expected[at : at + 80]!r}"
    return None if text_of(reply.body) == text_of(expected) else f"another text: {reply.body[:200]!r}"


async def _on_connections(target: Target, count: int, run: Run, work: Callable[[Connection], Awaitable[None]]) -> None:
    run.at_once = count
    connections = [await Connection.open(target.host, target.port) for _ in range(count)]
    began = time.perf_counter()
    try:
        await asyncio.gather(*(work(connection) for connection in connections))
    finally:
        run.took_s = time.perf_counter() - began
        for connection in connections:
            connection.close()
