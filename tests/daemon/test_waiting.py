"""The queue: bounded, fair between callers, by priority; nobody's turn is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from tiermesh.daemon.ask import Caller, Priority
from tiermesh.daemon.waiting import LOOKED_AT, Waiting, Wish
from tiermesh.errors import Unavailable
from tiermesh.types import Tier


class Slots:
    """So many are free; `taken` is who got one, in order."""

    def __init__(self, free: int = 0) -> None:
        self.free = free
        self.released: list[str] = []

    def ready(self, name: str) -> str | None:
        if not self.free:
            return None
        self.free -= 1
        return name


class Queue:
    """A queue before `slots`."""

    def __init__(self, *, look_s: float = 60.0, max_bytes: int = 1000) -> None:
        self.slots = Slots()
        self.waiting: Waiting[str] = Waiting(self.slots.released.append, look_s=look_s, max_bytes=max_bytes)
        self.order: list[str] = []
        self.tasks: dict[str, asyncio.Task[str | None]] = {}

    async def join(self, name: str, *how: Any, **more: Any) -> None:
        """Stand in the queue; returns when that is so."""
        self.enter(name, *how, **more)
        await asyncio.sleep(0)

    def enter(
        self,
        name: str,
        caller: str = "",
        priority: Priority = "normal",
        *,
        model: str = "m",
        tier: Tier | None = None,
        timeout_s: float = 60.0,
        length: int | None = 100,
        size_bytes: int = 1,
        apart: bool = False,
    ) -> None:
        """Go and stand in it."""

        async def wait() -> str | None:
            got = await self.waiting.turn(
                Wish(model, tier),
                Caller(caller, priority),
                lambda: self.slots.ready(name),
                timeout_s=timeout_s,
                length=length,
                size_bytes=size_bytes,
                apart=apart,
            )
            if got is not None:
                self.order.append(got)
            return got

        self.tasks[name] = asyncio.create_task(wait())

    async def free(self, count: int) -> None:
        """Slots become free, one after the other."""
        for _ in range(count):
            self.slots.free += 1
            self.waiting.poke()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        assert self.waiting.lengths() == {}


async def test_callers_take_turns() -> None:
    queue = Queue()
    for number in range(5):
        await queue.join(f"greedy {number}", "greedy")
    await queue.join("modest 0", "modest")
    await queue.join("third 0", "third")
    await queue.free(7)
    assert queue.order == ["greedy 0", "modest 0", "third 0", *(f"greedy {number}" for number in range(1, 5))]
    await queue.close()


async def test_a_higher_priority_goes_first() -> None:
    queue = Queue()
    for priority in ("low", "normal", "high"):
        for number in range(2):
            await queue.join(f"{priority} {number}", "same", priority)
    await queue.free(6)
    assert queue.order == [f"{priority} {number}" for priority in ("high", "normal", "low") for number in range(2)]
    await queue.close()


async def test_models_take_turns_where_they_share_a_machine() -> None:
    queue = Queue()
    for number in range(3):
        await queue.join(f"m {number}", model="m")
        await queue.join(f"n {number}", model="n")
    await queue.free(4)
    assert Counter(name[0] for name in queue.order) == {"m": 2, "n": 2}
    await queue.close()


@pytest.mark.parametrize("apart", [True, False])
async def test_who_has_given_up_and_not_yet_left_takes_no_turn(apart: bool) -> None:
    """Between the end of somebody's patience and its leaving the line, a slot becomes free: it is the next one's."""
    queue = Queue()
    await queue.join("gives up", apart=apart)
    await queue.join("waits", apart=apart)
    queue.tasks["gives up"].cancel()
    await queue.free(1)
    assert queue.order == ["waits"]
    assert queue.slots.free == 0
    assert queue.slots.released == []
    await queue.close()


async def test_a_queue_that_is_full_refuses_at_once() -> None:
    queue = Queue()
    await queue.join("first", length=1)
    await queue.join("second", length=1)
    await queue.join("other model", model="n", length=1)
    with pytest.raises(Unavailable, match="1 requests wait for m"):
        await queue.tasks["second"]
    assert queue.waiting.lengths() == {"m": 1, "n": 1}
    await queue.close()


async def test_no_more_bytes_wait_than_there_is_room_for() -> None:
    queue = Queue(max_bytes=10)
    await queue.join("first", size_bytes=6)
    await queue.join("second", size_bytes=6)
    with pytest.raises(Unavailable, match="too much waits"):
        await queue.tasks["second"]
    await queue.free(1)
    await queue.join("third", size_bytes=10)
    await queue.free(1)
    assert queue.order == ["first", "third"]
    await queue.close()


async def test_who_waited_long_enough_gets_nothing_and_leaves_nothing() -> None:
    queue = Queue()
    await queue.join("first", timeout_s=0.01)
    assert await queue.tasks["first"] is None
    assert queue.waiting.lengths() == {}
    await queue.close()


async def test_who_leaves_is_not_served() -> None:
    queue = Queue()
    await queue.join("gone")
    await queue.join("there")
    queue.tasks["gone"].cancel()
    await asyncio.gather(queue.tasks["gone"], return_exceptions=True)
    await queue.free(1)
    assert queue.order == ["there"]
    await queue.close()


async def test_a_turn_whose_owner_left_in_the_same_moment_is_given_back() -> None:
    queue = Queue()
    await queue.join("gone")
    queue.slots.free = 1
    queue.waiting.poke()
    queue.tasks["gone"].cancel()
    await asyncio.gather(queue.tasks["gone"], return_exceptions=True)
    assert (queue.order, queue.slots.released) == ([], ["gone"])
    await queue.close()


async def test_what_nobody_tells_is_looked_for() -> None:
    """That a time has passed, for instance."""
    queue = Queue(look_s=0.01)
    await queue.join("first")
    queue.slots.free = 1
    assert await asyncio.wait_for(queue.tasks["first"], 5) == "first"
    await queue.close()


async def test_one_that_cant_begin_does_not_block_other_callers() -> None:
    queue = Queue()
    stuck = asyncio.create_task(
        queue.waiting.turn(Wish("m"), Caller("a"), lambda: None, timeout_s=60, length=9, size_bytes=0)
    )
    queue.tasks["stuck"] = stuck
    await asyncio.sleep(0)
    await queue.join("free", "b")
    await queue.free(1)
    assert queue.order == ["free"]
    await queue.close()


async def test_who_stands_apart_goes_first_and_holds_nobody_up() -> None:
    queue = Queue()
    for number in range(2 * LOOKED_AT):
        stuck = queue.waiting.turn(
            Wish("m"), Caller("a"), lambda: None, timeout_s=60, length=99, size_bytes=0, apart=True
        )
        queue.tasks[f"stuck {number}"] = asyncio.create_task(stuck)
    await asyncio.sleep(0)
    assert not queue.waiting.anybody(Wish("m")), "they are waited behind by nobody"
    await queue.join("in line", "a")
    await queue.free(1)
    await queue.join("next in line", "a")
    await queue.join("apart", "a", apart=True)
    for _ in range(3):  # a few are looked at each time, in turn
        queue.waiting.poke()
    await queue.free(1)
    queue.slots.free = 1
    for _ in range(3):
        queue.waiting.poke()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sorted(queue.order) == ["apart", "in line", "next in line"]
    await queue.close()


async def test_who_must_be_served_is_refused_by_no_bound() -> None:
    queue = Queue(max_bytes=1)
    await queue.join("first", length=1)
    await queue.join("begun", length=None, size_bytes=0, apart=True)
    await queue.free(2)
    assert queue.order == ["begun", "first"]
    await queue.close()


async def test_other_wishes_are_other_lines_within_the_bound_of_their_model() -> None:
    queue = Queue()
    await queue.join("tier 1", tier=1, length=2)
    assert not queue.waiting.anybody(Wish("m", 2))
    await queue.join("tier 2", tier=2, length=2)
    await queue.join("tier 0", tier=0, length=2)
    with pytest.raises(Unavailable, match="2 requests wait for m"):
        await queue.tasks["tier 0"]
    assert queue.waiting.lengths() == {"m": 2}
    await queue.close()


async def test_the_end_of_one_line_is_not_that_of_the_next() -> None:
    """Two of one line are served; between their ways home the next one comes, and stands in a line of its own."""
    queue = Queue()
    await queue.join("first")
    await queue.join("second")

    def serve_one() -> None:
        queue.slots.free += 1
        queue.waiting.poke()

    loop = asyncio.get_running_loop()
    loop.call_soon(serve_one)
    loop.call_soon(queue.enter, "third")
    loop.call_soon(serve_one)
    for _ in range(4):
        await asyncio.sleep(0)
    assert queue.order == ["first", "second"]
    assert queue.waiting.anybody(Wish("m")), "the third one waits, and is known to"
    await queue.free(1)
    assert queue.order == ["first", "second", "third"]
    await queue.close()
