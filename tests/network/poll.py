"""The observer: asks every node's `GET /api/cluster` again and again, from outside, and says when what was true.

A moment is the arrival of the answer that shows it, on the monotonic clock: late by up to one round of polling, never
early. `Watch.gaps` says how long the rounds really were, so that a figure is honest about its resolution.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp
from tests.network import netns

PERIOD_S = 0.01
ANSWER_S = 2.0
"""A node that says nothing for so long (a frozen one) is asked anew."""
REST_S = 0.1


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a daemon lives: a namespace (None: this machine's own), its address there and its port."""

    namespace: str | None
    host: str
    port: int

    @property
    def address(self) -> str:
        """As the others see it."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """As seen from inside: every daemon answers on loopback too."""
        return f"http://127.0.0.1:{self.port}"

    def session(self, token: str | None = None, timeout_s: float = ANSWER_S) -> aiohttp.ClientSession:
        """An HTTP client inside the namespace."""
        return aiohttp.ClientSession(
            self.url,
            connector=aiohttp.TCPConnector(socket_factory=netns.dialler(self.namespace)),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            headers={"Authorization": f"Bearer {token}"} if token else {},
        )


@dataclass(frozen=True, slots=True)
class Picture:
    """What one node says of the cluster, as far as elections go."""

    me: str
    ballot: tuple[int, str]
    coordinator: str | None
    states: Mapping[str, str]
    """`up`, `draining` or `down` by node id."""
    roles: Mapping[str, str]
    names: Mapping[str, str]
    serving: frozenset[str]
    """Who has a model."""

    @property
    def up(self) -> frozenset[str]:
        return frozenset(node for node, state in self.states.items() if state == "up")

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Picture:
        nodes = report["nodes"]
        return cls(
            me=report["self"],
            ballot=(report["ballot"]["term"], report["ballot"]["node_id"]),
            coordinator=report["coordinator"] and report["coordinator"]["id"],
            states={node["id"]: node["state"] for node in nodes},
            roles={node["id"]: node["role"] for node in nodes},
            names={node["id"]: node["name"] for node in nodes},
            serving=frozenset(node["id"] for node in nodes if node["models"]),
        )


@dataclass(frozen=True, slots=True)
class Change:
    """A node's picture became another one; None: it gave none."""

    at: float
    seat: int
    picture: Picture | None


Pictures = Mapping[int, Picture | None]


class Watch:
    """Polls all seats while it is open. `pictures` is the newest of each, `changes` how they came about."""

    def __init__(self, seats: Mapping[int, Seat], tokens: Mapping[int, str] | None = None) -> None:
        self.seats = seats
        self.period_s = PERIOD_S
        self.resting = False
        """Ask nobody: the daemons are to be idle."""
        self.pictures: dict[int, Picture | None] = dict.fromkeys(seats)
        self.reports: dict[int, Mapping[str, Any]] = {}
        self.changes: list[Change] = []
        self.gaps: list[float] = []
        """Time between two consecutive answers of one node, in seconds."""
        self._tokens = tokens or {}
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._run(index, seat)) for index, seat in self.seats.items()]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def until(self, condition: Callable[[Pictures], bool], within_s: float, what: str) -> float:
        """The moment from which `condition` holds; it may hold already. Fails after `within_s` with what was seen."""
        deadline = time.monotonic() + within_s
        at = time.monotonic()
        while not condition(self.pictures):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {within_s} s: {what}\n{self.describe()}")
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REST_S):
                    await self._changed.wait()
                    at = self.changes[-1].at
        return at

    def forget(self, seat: int) -> None:
        """What this node said before it was started again does not count as said by the new one."""
        self.pictures[seat] = None

    def since(self, moment: float) -> list[Change]:
        return [change for change in self.changes if change.at >= moment]

    def describe(self) -> str:
        """What each node says now, for a person."""
        return "\n".join(f"  n{index}: {_line(picture)}" for index, picture in self.pictures.items())

    async def _run(self, index: int, seat: Seat) -> None:
        body, answered_at = b"", 0.0
        async with seat.session(self._tokens.get(index)) as session:
            while True:
                asked_at = time.monotonic()
                if self.resting:
                    answered_at = 0.0
                    await asyncio.sleep(REST_S)
                    continue
                try:
                    async with session.get("/api/cluster") as response:
                        new = await response.read() if response.status == 200 else b""
                except (aiohttp.ClientError, TimeoutError, OSError):
                    new = b""
                now = time.monotonic()
                if new and answered_at:
                    self.gaps.append(now - answered_at)
                answered_at = now if new else 0.0
                if new != body:
                    body = new
                    self._note(index, now, json.loads(new) if new else None)
                await asyncio.sleep(max(0.0, self.period_s - (time.monotonic() - asked_at)))

    def _note(self, index: int, at: float, report: Mapping[str, Any] | None) -> None:
        picture = None if report is None else Picture.of(report)
        if report is not None:
            self.reports[index] = report
        if picture != self.pictures[index]:
            self.pictures[index] = picture
            self.changes.append(Change(at, index, picture))
            self._changed.set()


def agreed(pictures: Pictures, seats: Iterable[int], *, alone: bool = False, serving: bool = False) -> bool:
    """Do these nodes agree on one coordinator, one of them, under one ballot, and on all of them being up?

    `alone`: nobody else is up in their views. `serving`: and every one of them knows that all of them have models.
    """
    found = [pictures[seat] for seat in seats]
    shown = [picture for picture in found if picture is not None]
    if len(shown) < len(found) or not shown:
        return False
    ids = {picture.me for picture in shown}
    return (
        len({(picture.coordinator, picture.ballot) for picture in shown}) == 1
        and shown[0].coordinator in ids
        and all(picture.up == ids if alone else picture.up >= ids for picture in shown)
        and not (serving and not all(picture.serving >= ids for picture in shown))
    )


def _line(picture: Picture | None) -> str:
    if picture is None:
        return "no answer"
    coordinator = "nobody" if picture.coordinator is None else picture.names.get(picture.coordinator, "a stranger")
    states = " ".join(f"{picture.names[node]}={state}" for node, state in picture.states.items())
    return f"{picture.me[:6]} follows {coordinator} of term {picture.ballot[0]}; {states}"
