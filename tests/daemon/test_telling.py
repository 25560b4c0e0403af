"""Telling the coordinator goes on, whatever goes wrong with one message."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any, cast

from tiermesh.core.attempts import Told
from tiermesh.core.jobs import JobId
from tiermesh.daemon.telling import AT_ONCE, Telling
from tiermesh.daemon.told import wire_of
from tiermesh.errors import StateUnwritable
from tiermesh.protocol.job_orders import AttemptTold, HeardReport
from tiermesh.protocol.ulid import make_ulid
from tiermesh.types import Ballot, NodeId, View

ME = NodeId("a" * 32)
BALLOT = Ballot(1, ME)


class Node:
    """Its attempts and the coordinator, which is itself. `faults` are what the next answers meet."""

    def __init__(self, attempts: int) -> None:
        self.said = [said() for _ in range(attempts)]
        self.faults: list[Exception] = []
        self.heard: list[list[AttemptTold]] = []

    def to_tell(self, ballot: Ballot) -> list[AttemptTold]:
        assert ballot == BALLOT
        return self.said

    async def hear(self, node: NodeId, said: list[AttemptTold]) -> list[HeardReport]:
        assert node == ME
        self.heard.append(said)
        return []

    async def answered(self, *_: object) -> None:
        if self.faults:
            raise self.faults.pop()

    def telling(self, view: View) -> Telling:
        return Telling(
            me=ME, attempts=cast(Any, self), reactor=cast(Any, self), peers=cast(Any, None), view=lambda: view
        )


def said() -> AttemptTold:
    job = JobId(make_ulid(secrets.randbits(40), secrets.token_bytes(10)))
    return wire_of((job, (1, BALLOT)), Told(seq=1))


async def test_a_disk_that_is_full_for_a_moment_silences_nobody() -> None:
    node = Node(1)
    node.faults = [StateUnwritable("no space is left"), KeyError("whatever")]
    telling = node.telling(View(coordinator=ME, ballot=BALLOT))
    telling.start()
    async with asyncio.timeout(10):
        while len(node.heard) < 3:
            telling.wake()
            await asyncio.sleep(0.01)
    await telling.close()


async def test_a_coordinator_that_is_no_member_yet_is_told_later() -> None:
    node = Node(1)
    await node.telling(View(coordinator=NodeId("b" * 32), ballot=BALLOT)).tell()
    assert node.heard == []


async def test_many_attempts_are_told_in_turns_and_the_newest_always() -> None:
    node = Node(3 * AT_ONCE)
    telling = node.telling(View(coordinator=ME, ballot=BALLOT))
    for _ in range(4):
        await telling.tell()
    assert [len(each) for each in node.heard] == [AT_ONCE] * 4
    assert all(each[-1] is node.said[-1] for each in node.heard)
    assert {each.job for one in node.heard for each in one} == {each.job for each in node.said}
