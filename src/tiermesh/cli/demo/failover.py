"""First act: a mesh is asked, its coordinator is killed while prompts run, and nobody who asked notices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tiermesh.cli.demo.story import ANSWER_LIMIT_S, DemoNode, StepFailed, answer_of, report_of, say, until
from tiermesh.errors import TiermeshError

if TYPE_CHECKING:
    from tiermesh.client import RemoteClient

QUESTION = "What is the capital of Japan?"
FAILOVER_LIMIT_S = 15.0


@dataclass
class Ledger:
    """What the prompts in the background met."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)

    async def begun(self) -> bool:
        return self.answered > 1 or bool(self.failures)


async def hit(leader: DemoNode, survivors: Mapping[str, RemoteClient]) -> None:
    """SIGKILL the coordinator while prompts run through the others; measure from outside."""
    ledger, stop = Ledger(), asyncio.Event()
    askers = [asyncio.ensure_future(_keep_asking(c, ledger, stop)) for c in survivors.values()]
    await until(ledger.begun, ANSWER_LIMIT_S, "the first answers")
    say(f"killing the coordinator, {leader.name}, with SIGKILL while prompts run through the others")
    killed = time.monotonic()
    leader.kill()

    async def replaced() -> str | None:
        reports = [await report_of(client) for client in survivors.values()]
        names = {r.coordinator.name if r and r.coordinator else None for r in reports}
        return names.pop() if len(names) == 1 and names.isdisjoint({leader.name, None}) else None

    successor = await until(replaced, FAILOVER_LIMIT_S, "a new coordinator")
    say(f"the mesh was without a coordinator for {time.monotonic() - killed:.3f} s; now it is {successor}")
    name = next(name for name in survivors if name != "laptop")
    await answer_of(name, survivors[name], QUESTION)
    stop.set()
    await asyncio.gather(*askers)
    if ledger.failures:
        raise StepFailed(f"{len(ledger.failures)} prompts failed, the first with: {ledger.failures[0]}")
    say(f"no prompt failed: {ledger.answered} of {ledger.answered} in the background were answered meanwhile")


async def _keep_asking(client: RemoteClient, ledger: Ledger, stop: asyncio.Event) -> None:
    while not stop.is_set():
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                answer = await client.complete("Say hello.", temperature=0.0, max_tokens=4)
        except (TiermeshError, TimeoutError) as error:
            ledger.failures.append(str(error) or "time is up")
            return
        ledger.answered += 1 if answer.content else 0
