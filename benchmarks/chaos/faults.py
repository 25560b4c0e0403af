"""What goes wrong, drawn from a seed, and how it is done to real processes.

Machines stand in pairs: two that compute, two that route and have a server of their own beside them. Of each pair one
machine at a time is harmed, so that somebody is left who could answer; the pairs and the servers know nothing of one
another, so that two machines and a server are often ill at once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from tests.openai_fake import FakeOpenAI

from benchmarks.failover.daemons import Machine, coordinator_of, until, until_well

Kind = Literal["killed", "frozen", "worker killed", "drained"]

COMPUTING: tuple[Kind, ...] = ("killed", "killed", "frozen", "worker killed", "worker killed", "drained")
ROUTING: tuple[Kind, ...] = ("killed", "frozen", "frozen", "drained")
ILLNESSES = ("500", "429", "503", "reset", "half", "break", "short", "errorevent", "garbage", "slow")
"""Of a server, as `tests.openai_fake` has them. Silence without an end is waited for too long here."""

PAUSE_S = (0.3, 2.5)
"""From one machine's recovery to the next fault in its pair."""
LASTS_S = (0.1, 4.0)
"""Of a fault that is taken back: shorter and longer than it takes to be noticed."""
AIMED = 0.5
"""The share of faults that look for the coordinator first."""


@dataclass(frozen=True, slots=True)
class Fault:
    """After `pause_s`, `kind` happens to the `pick`-th of a pair, or to the coordinator if it is `aimed` and in the
    pair, for `lasts_s` where it is taken back."""

    kind: Kind
    pick: int
    aimed: bool
    pause_s: float
    lasts_s: float


@dataclass(slots=True)
class Journal:
    """What was done, when, in seconds since the first line."""

    lines: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def note(self, what: str, whom: str) -> None:
        """One more of these."""
        self.lines.append(f"{time.monotonic():.2f} (+{time.monotonic() - self.began:.1f} s): {whom} {what}")
        self.counts[what] = self.counts.get(what, 0) + 1


def drawn(seed: str, kinds: Sequence[Kind]) -> Iterator[Fault]:
    """Without end, and the same for the same seed."""
    chance = random.Random(seed)
    while True:
        yield Fault(
            kind=chance.choice(kinds),
            pick=chance.randrange(2),
            aimed=chance.random() < AIMED,
            pause_s=chance.uniform(*PAUSE_S),
            lasts_s=chance.uniform(*LASTS_S),
        )


@dataclass(frozen=True, slots=True)
class Pair:
    """Machines of which one at a time is harmed. `warm`: those of them that have a model in memory when well."""

    machines: tuple[Machine, Machine]
    everybody: Sequence[Machine]
    warm: tuple[str, ...]
    journal: Journal
    http: aiohttp.ClientSession

    async def suffer(self, faults: Iterator[Fault], ends: float) -> None:
        """One after the other, until the time has come; in the end both are well."""
        for fault in faults:
            await asyncio.sleep(min(fault.pause_s, max(0.0, ends - time.monotonic())))
            if time.monotonic() >= ends:
                return
            victim = await self._victim(fault)
            self.journal.note(fault.kind, victim.name)
            await self._harm(victim, fault)
            await until_well(self.http, [victim], warm=[name for name in self.warm if name == victim.name])

    async def _victim(self, fault: Fault) -> Machine:
        leader = await coordinator_of(self.http, self.machines) if fault.aimed else None
        return next((machine for machine in self.machines if machine.name == leader), self.machines[fault.pick])

    async def _harm(self, victim: Machine, fault: Fault) -> None:
        match fault.kind:
            case "killed":
                await victim.kill()
                await asyncio.sleep(fault.lasts_s)
                await victim.start()
            case "frozen":
                victim.freeze()
                await asyncio.sleep(fault.lasts_s)
                victim.thaw()
            case "worker killed":
                await self._kill_worker(victim)
            case "drained":
                await self._order(victim, "drain")
                await asyncio.sleep(fault.lasts_s)
                await self._order(victim, "resume")

    async def _kill_worker(self, victim: Machine) -> None:
        """And wait until there is another one."""
        worker = victim.worker()
        if worker is not None:
            worker.kill()
            await until(lambda: (now := victim.worker()) is not None and now.pid != worker.pid)

    async def _order(self, victim: Machine, order: Literal["drain", "resume"]) -> None:
        async with self.http.post(f"{victim.url}/api/nodes/{victim.name}/{order}", json={}) as response:
            response.raise_for_status()


@asynccontextmanager
async def falling_ill(seed: str, servers: Sequence[FakeOpenAI], journal: Journal, ends: float) -> AsyncIterator[None]:
    """Now one server misbehaves, now the other, now both, until the time has come."""
    ill = [
        asyncio.create_task(_be_ill(f"{seed} {number}", server, journal, ends)) for number, server in enumerate(servers)
    ]
    try:
        yield
    finally:
        await asyncio.gather(*ill)


async def _be_ill(seed: str, server: FakeOpenAI, journal: Journal, ends: float) -> None:
    chance = random.Random(seed)
    while time.monotonic() < ends:
        await asyncio.sleep(chance.uniform(*PAUSE_S))
        server.behaviour = chance.choice(ILLNESSES)
        journal.note("ill", f"server ({server.behaviour})")
        await asyncio.sleep(chance.uniform(*LASTS_S))
        server.behaviour = ""
