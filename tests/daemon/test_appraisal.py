"""What a job would take on this node: asked once, and once more where the answer was that of a busy machine."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tiermesh.core.jobs import Estimate
from tiermesh.daemon.appraisal import Appraisal
from tiermesh.errors import SlotTaken
from tiermesh.protocol.job_orders import DataAsked, WorkAsked
from tiermesh.protocol.ulid import make_ulid
from tiermesh.types import NodeId

NODE = NodeId("a" * 32)


class Node:
    """Takes twice as long while it trains."""

    def __init__(self, folder: Path) -> None:
        self.busy = False
        self.busy_afterwards: bool | None = None
        self.refusal: Exception | None = None
        self.shortage: Exception | None = None
        self.tried = 0
        me = cast(Any, self)
        self.appraisal = Appraisal(folder=folder, copies=me, groundwork=me, estimator=me, is_busy=lambda: self.busy)

    async def bring(self, *_: object) -> None:
        pass

    def plan(self, *_: object) -> Any:
        return SimpleNamespace()

    def check_size(self, *_: object) -> None:
        pass

    def check_free(self, *_: object) -> None:
        if self.shortage is not None:
            raise self.shortage

    async def estimate(self, _: object) -> Estimate:
        self.tried += 1
        seconds = 20.0 if self.busy else 10.0
        await asyncio.sleep(0)
        if self.busy_afterwards is not None:
            self.busy = self.busy_afterwards
        if self.refusal is not None:
            raise self.refusal
        return Estimate(node=NODE, memory_bytes=1, seconds=seconds)

    async def asked(self) -> float:
        """By another job each time, which wants the same."""
        job = make_ulid(secrets.randbits(40), secrets.token_bytes(10))
        data = DataAsked(sha256="0" * 64, name="faq.jsonl")
        return (await self.appraisal.estimate(WorkAsked(job=job, spec={}, data=data))).seconds


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path)
    async with asyncio.timeout(10):
        yield made
        await made.appraisal.close()


async def test_equal_questions_are_one(node: Node) -> None:
    assert await asyncio.gather(*(node.asked() for _ in range(5))) == [10.0] * 5
    node.busy = True
    assert await node.asked() == 10.0, "it was idle when it tried"
    assert node.tried == 1


async def test_what_was_tried_while_it_trained_is_tried_again_when_it_is_idle(node: Node) -> None:
    node.busy = True
    assert [await node.asked(), await node.asked()] == [20.0, 20.0]
    assert node.tried == 1, "while it trains, nothing better is to be had"
    node.busy = False
    assert [await node.asked(), await node.asked()] == [10.0, 10.0]
    assert node.tried == 2


@pytest.mark.parametrize("begins", [True, False])
async def test_so_is_what_a_training_run_began_or_ended_in(node: Node, *, begins: bool) -> None:
    node.busy, node.busy_afterwards = not begins, begins
    await node.asked()
    node.busy = False
    node.busy_afterwards = None
    await node.asked()
    assert node.tried == 2


async def test_a_refusal_is_not_kept(node: Node) -> None:
    node.refusal = SlotTaken("memory is short")
    with pytest.raises(SlotTaken):
        await node.asked()
    node.refusal = None
    assert await node.asked() == 10.0


async def test_whether_there_is_memory_now_is_asked_every_time(node: Node) -> None:
    await node.asked()
    node.shortage = SlotTaken("it needs about 9.1 GiB, and 7.4 GiB are free now")
    with pytest.raises(SlotTaken):
        await node.asked()
    node.shortage = None
    assert await node.asked() == 10.0
    assert node.tried == 1
