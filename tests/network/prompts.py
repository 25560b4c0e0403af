"""A steady stream of prompts, so that a test sees what its users would have seen."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp
from tests.network.poll import Seat

ANSWER_S = 30.0
"""As long as a client would wait."""
MODEL = "shared"


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one prompt: its status (0: no answer at all), who answered, and after how many tries."""

    asked_at: float
    took_s: float
    through: int
    status: int
    node: str | None
    attempts: int
    text: str

    @property
    def ok(self) -> bool:
        return self.status == 200


class Prompts:
    """Asks `rate` times a second, not streamed, by turns through the nodes that `through()` names at that moment."""

    def __init__(
        self,
        seats: Mapping[int, Seat],
        through: Callable[[], Sequence[int]],
        *,
        rate: float = 5.0,
        body: Mapping[str, Any] | None = None,
        token: str | None = None,
    ) -> None:
        self.answers: list[Answer] = []
        self._seats = seats
        self._through = through
        self._period_s = 1 / rate
        self._body = body or {"model": MODEL}
        self._token = token
        self._news = asyncio.Event()
        self._asker: asyncio.Task[None] | None = None
        self._pending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._asker = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Stop asking, and wait for every answer that is still owed."""
        assert self._asker is not None
        self._asker.cancel()
        await asyncio.gather(self._asker, *self._pending, return_exceptions=True)

    @property
    def failed(self) -> list[Answer]:
        return [answer for answer in self.answers if not answer.ok]

    def summary(self) -> str:
        """How they fared, for a person."""
        moved = sum(answer.attempts > 1 for answer in self.answers)
        slowest_s = max(answer.took_s for answer in self.answers)
        return f"{len(self.failed)} of {len(self.answers)} prompts failed, {moved} moved, slowest {slowest_s:.2f} s"

    def served_by(self, since: float = 0.0, until: float = float("inf")) -> Counter[str]:
        """How many prompts asked in this time each node answered."""
        return Counter(a.node for a in self.answers if a.node and since <= a.asked_at < until)

    async def until_served_by(self, node: str, within_s: float) -> None:
        """Wait until `node` has answered one."""
        async with asyncio.timeout(within_s):
            while not self.served_by()[node]:
                self._news.clear()
                await self._news.wait()

    async def until_answered(self, count: int, within_s: float) -> None:
        """Wait until so many have got their answer, of whatever kind."""
        async with asyncio.timeout(within_s):
            while len(self.answers) < count:
                self._news.clear()
                await self._news.wait()

    async def _run(self) -> None:
        due = time.monotonic()
        number = 0
        while True:
            through = self._through()
            if through:
                task = asyncio.create_task(self._ask(number, through[number % len(through)]))
                self._pending.add(task)
                task.add_done_callback(self._pending.discard)
                number += 1
            due = max(due + self._period_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def _ask(self, number: int, through: int) -> None:
        asked_at = time.monotonic()
        body = {**self._body, "messages": [{"role": "user", "content": f"question {number}"}]}
        status, headers, text = 0, {}, ""
        try:
            async with (
                self._seats[through].session(self._token, ANSWER_S) as session,
                session.post("/v1/chat/completions", json=body) as response,
            ):
                status, headers = response.status, dict(response.headers)
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            status, text = 0, repr(error)
        self.answers.append(
            Answer(
                asked_at=asked_at,
                took_s=time.monotonic() - asked_at,
                through=through,
                status=status,
                node=headers.get("X-Mesh-Node"),
                attempts=int(headers.get("X-Mesh-Attempts", 0)),
                text=text,
            )
        )
        self._news.set()
