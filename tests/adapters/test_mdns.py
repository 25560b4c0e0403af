"""Discovery on the loopback interface: who is announced is seen, and clusters stay apart."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from tiermesh.adapters.interfaces import choose
from tiermesh.adapters.mdns import TXT_LIMIT_BYTES, Mdns, Record, Sighting
from tiermesh.types import Address, Contact, NodeId, SessionId

LOOPBACK = choose("127.0.0.1")
CLUSTER = f"test-{secrets.token_hex(4)}"


def record(name: str, *, cluster: str = CLUSTER, port: int = 4242, models: tuple[str, ...] = ()) -> Record:
    return Record(
        node_id=NodeId(secrets.token_hex(16)),
        session=SessionId(f"1764000000000-{secrets.token_hex(4)}"),
        cluster=cluster,
        name=name,
        port=port,
        protocol=1,
        tier=1,
        models=models,
        capabilities=("inference",),
    )


class Seen:
    """The sightings of one node."""

    def __init__(self) -> None:
        self.sightings: list[Sighting] = []
        self._changed = asyncio.Event()

    def add(self, sighting: Sighting) -> None:
        self.sightings.append(sighting)
        self._changed.set()

    async def until(self, node: NodeId, port: int | None = None) -> Contact:
        async with asyncio.timeout(10):
            while True:
                for sighting in self.sightings:
                    at = sighting.contact
                    if at.node_id == node and (port is None or at.addresses[0].endswith(f":{port}")):
                        return at
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def announced(mine: Record) -> AsyncIterator[tuple[Mdns, Seen]]:
    seen = Seen()
    mdns = Mdns(service="_tiermesh-test._tcp.local.", interfaces=LOOPBACK, on_sighting=seen.add)
    await mdns.open(mine)
    try:
        yield mdns, seen
    finally:
        await mdns.close()


async def test_two_nodes_see_one_another_at_once() -> None:
    a, b = record("a"), record("b", port=4343)
    async with announced(a) as (_, seen_by_a):
        started = time.monotonic()
        async with announced(b) as (_, seen_by_b):
            assert await seen_by_a.until(b.node_id) == Contact((Address("127.0.0.1:4343"),), b.node_id)
            took_s = time.monotonic() - started
            await seen_by_b.until(a.node_id)
    print(f"announce to seen: {took_s * 1000:.1f} ms")
    assert took_s < 1.0, "the probing wait is back: it alone takes 1.2 s"


async def test_clusters_stay_apart_and_nobody_sights_itself() -> None:
    ours, theirs, late = record("ours"), record("theirs", cluster="other"), record("late")
    async with announced(ours) as (_, seen), announced(theirs) as (_, seen_by_them), announced(late):
        await seen.until(late.node_id)
        assert {s.contact.node_id for s in seen.sightings} == {late.node_id}
        assert seen_by_them.sightings == []


async def test_a_record_that_no_daemon_makes_is_ignored() -> None:
    ours, late = record("ours"), record("late")
    strange = replace(record("strange"), node_id=NodeId("x" * 32))
    undated = replace(record("undated"), session=SessionId("0"))
    async with announced(ours) as (_, seen), announced(strange), announced(undated), announced(late):
        await seen.until(late.node_id)
        assert {s.contact.node_id for s in seen.sightings} == {late.node_id}


async def test_a_new_port_is_seen() -> None:
    a, b = record("a"), record("b")
    async with announced(a) as (_, seen), announced(b) as (mdns, _):
        await seen.until(b.node_id)
        await mdns.announce(Record(**{field: getattr(b, field) for field in b.__slots__} | {"port": 5555}))
        await seen.until(b.node_id, 5555)


async def test_interfaces_can_be_scanned_again() -> None:
    a, b = record("a"), record("b")
    async with announced(a) as (_, seen), announced(b) as (mdns, _):
        await mdns.rescan(LOOPBACK)
        await seen.until(b.node_id)


def test_the_record_fits_one_frame() -> None:
    crowded = record("n" * 100, models=tuple(f"publisher/model-{i}:70b-instruct" for i in range(200)))
    txt = crowded.txt()
    assert sum(len(k) + len(v.encode()) + 2 for k, v in txt.items()) <= TXT_LIMIT_BYTES
    assert all(len(f"{k}={v}".encode()) <= 255 for k, v in txt.items())
    assert txt["models"].startswith("publisher/model-0:70b-instruct,")
