"""What is done to a mesh, and what is measured of it. The tests run each a few times, `scripts/figures` many times.

Every function takes a mesh whose nodes agree and leaves one whose nodes agree again. Durations are in seconds, from
the moment before the deed (a signal, a cable) to the first answers that show the effect on every node concerned.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from tests.network.frames import Announcements
from tests.network.lan import Lan
from tests.network.mesh import Mesh, pair_of
from tests.network.poll import Pictures
from tests.network.prompts import Prompts

LATE_S = 30.0
"""After this a trial has failed, whatever its bound; far above every bound, so that a miss shows its size."""

BETWEEN_STARTS_S = 0.5
"""Machines that lost power together start one after the other; up to this much lies between two of ours."""


@dataclass(frozen=True, slots=True)
class Formation:
    """Daemons started together. `ballots`: every one that anybody followed on the way."""

    after_last_ready_s: float
    after_start_s: float
    ballots: int


@dataclass(frozen=True, slots=True)
class Replacement:
    """A coordinator went away. `known_s`: until all others agreed on another; `back_s`: until all agreed with it."""

    known_s: float
    back_s: float


@dataclass(frozen=True, slots=True)
class Absence:
    """A member went away: until all others showed it down, and until everybody showed it up again."""

    down_s: float
    back_s: float


@dataclass(frozen=True, slots=True)
class Healing:
    """Two halves: until each had a coordinator, and until there was one again."""

    apart_s: float
    one_s: float


@dataclass(frozen=True, slots=True)
class Thaw:
    """A frozen coordinator: until it was replaced, and from SIGCONT until it followed its successor."""

    replaced_s: float
    member_s: float


@dataclass(frozen=True, slots=True)
class PowerCut:
    """All killed at once: until they agreed again, from the start of the last one and from its first answer."""

    after_last_start_s: float
    after_last_ready_s: float


async def form(mesh: Mesh) -> Formation:
    """Start all daemons at once."""
    started_at = time.monotonic()
    agreed_at = await mesh.form()
    return Formation(
        after_last_ready_s=agreed_at - _last_ready(mesh, started_at),
        after_start_s=agreed_at - started_at,
        ballots=len({c.picture.ballot for c in mesh.watch.since(started_at) if c.picture and c.picture.coordinator}),
    )


async def join(mesh: Mesh, announcements: Announcements, lan: Lan, node: int) -> float:
    """Start `node` beside the others, which agree: from its first announcement on the wire to its place everywhere."""
    mesh.start(node)
    announced_at = await announcements.first(lan.address(node), mesh.started_at[node], LATE_S)
    everywhere_at = await mesh.until_agreed(within_s=LATE_S)
    return everywhere_at - announced_at


async def kill_coordinator(mesh: Mesh) -> Replacement:
    """SIGKILL the coordinator; then start it again."""
    old, others = _coordinator_and_others(mesh)
    killed_at = time.monotonic()
    mesh.daemons[old].kill()
    known_at = await mesh.until_agreed(*others, within_s=LATE_S)
    await _all_see(mesh, others, lambda states: states.get(mesh.id_of(old)) == "down")
    mesh.start(old)
    back_at = await mesh.until_settled()
    return Replacement(known_at - killed_at, back_at - mesh.started_at[old])


async def cut_coordinator(mesh: Mesh, lan: Lan) -> Replacement:
    """Pull the coordinator's cable; then plug it in again: the others' new coordinator must stay."""
    old, others = _coordinator_and_others(mesh)
    cut_at = time.monotonic()
    lan.cut(old)
    known_at = await mesh.until_agreed(*others, within_s=LATE_S)
    new = mesh.picture(others[0]).coordinator
    await mesh.until_agreed(old, within_s=LATE_S, alone=True)
    mended_at = time.monotonic()
    lan.mend(old)
    back_at = await mesh.until_agreed(within_s=LATE_S)
    assert mesh.picture(old).coordinator == new, "a returning machine took the mesh from a larger group"
    return Replacement(known_at - cut_at, back_at - mended_at)


async def stop_coordinator(mesh: Mesh) -> float:
    """SIGTERM the coordinator: until all others agree on another. It stays away."""
    leaver, others = _coordinator_and_others(mesh)
    told_at = time.monotonic()
    mesh.daemons[leaver].terminate()
    known_at = await mesh.until_agreed(*others, within_s=LATE_S)
    return known_at - told_at


async def kill_member(mesh: Mesh) -> Absence:
    """SIGKILL a member; then start it again."""
    coordinator, others = _coordinator_and_others(mesh)
    lost, witnesses = others[-1], mesh.others(others[-1])
    killed_at = time.monotonic()
    mesh.daemons[lost].kill()
    down_at = await _all_see(mesh, witnesses, lambda states: states.get(mesh.id_of(lost)) == "down")
    mesh.start(lost)
    back_at = await mesh.until_settled()
    assert mesh.coordinator() == coordinator, "losing a member must not change the coordinator"
    return Absence(down_at - killed_at, back_at - mesh.started_at[lost])


async def cut_member(mesh: Mesh, lan: Lan) -> Absence:
    """Pull a member's cable until it leads itself; then plug it in again: the coordinator must stay."""
    coordinator, others = _coordinator_and_others(mesh)
    lost, witnesses = others[-1], mesh.others(others[-1])
    cut_at = time.monotonic()
    lan.cut(lost)
    down_at = await _all_see(mesh, witnesses, lambda states: states.get(mesh.id_of(lost)) == "down")
    await mesh.until_agreed(lost, within_s=LATE_S, alone=True)
    mended_at = time.monotonic()
    lan.mend(lost)
    back_at = await mesh.until_agreed(within_s=LATE_S)
    assert mesh.coordinator() == coordinator, "a returning machine took the mesh from a larger group"
    return Absence(down_at - cut_at, back_at - mended_at)


async def part_and_heal(mesh: Mesh, lan: Lan, *, coordinator_in_larger: bool) -> Healing:
    """Two groups, the larger by one; then one again, under the larger group's coordinator. Nobody restarts."""
    coordinator, others = _coordinator_and_others(mesh)
    order = [coordinator, *others] if coordinator_in_larger else [*others, coordinator]
    larger, smaller = order[: mesh.size // 2 + 1], order[mesh.size // 2 + 1 :]
    pids = mesh.pids()
    parted_at = time.monotonic()
    lan.partition(larger, smaller)
    apart_at = max(
        await mesh.until_agreed(*larger, within_s=LATE_S, alone=True),
        await mesh.until_agreed(*smaller, within_s=LATE_S, alone=True),
    )
    for group in (larger, smaller):
        await _answers(mesh, group)
    leader = mesh.picture(larger[0]).coordinator
    healed_at = time.monotonic()
    lan.heal()
    one_at = await mesh.until_agreed(within_s=LATE_S)
    assert mesh.picture(smaller[0]).coordinator == leader, "the larger group's coordinator must stay"
    assert mesh.pids() == pids
    assert all(daemon.running for daemon in mesh.daemons)
    return Healing(apart_at - parted_at, one_at - healed_at)


async def freeze_coordinator(mesh: Mesh, for_s: float) -> Thaw:
    """SIGSTOP the coordinator for so long; then let it run on: it must find itself a member, obeyed by nobody."""
    old, others = _coordinator_and_others(mesh)
    old_id, old_ballot = mesh.id_of(old), mesh.picture(old).ballot
    frozen_at = time.monotonic()
    mesh.daemons[old].freeze()
    try:
        replaced_at = await mesh.until_agreed(*others, within_s=LATE_S)
        await asyncio.sleep(max(0.0, frozen_at + for_s - time.monotonic()))
    finally:
        thawed_at = time.monotonic()
        mesh.daemons[old].thaw()
    member_at = await mesh.until_agreed(within_s=LATE_S)
    assert mesh.coordinator() != old, "the frozen coordinator leads again"
    for change in mesh.watch.since(replaced_at):
        if change.seat != old and change.picture is not None:
            assert change.picture.ballot > old_ballot, f"n{change.seat} went back to the old ballot"
            assert change.picture.coordinator != old_id, f"n{change.seat} obeyed the thawed coordinator"
    return Thaw(replaced_at - frozen_at, member_at - thawed_at)


async def cut_power(mesh: Mesh, chance: random.Random) -> PowerCut:
    """SIGKILL all at once, and start them in any order with nothing to go by but what they kept on disk."""
    terms = {node: mesh.picture(node).ballot[0] for node in range(mesh.size)}
    ids = {node: mesh.id_of(node) for node in range(mesh.size)}
    for node, daemon in enumerate(mesh.daemons):
        daemon.kill(reap=False)
        mesh.configure(node, discovery={"method": "explicit"})
    for daemon in mesh.daemons:
        daemon.wait()
    await mesh.watch.until(lambda pictures: not any(pictures.values()), LATE_S, "nobody answers")
    order = list(range(mesh.size))
    chance.shuffle(order)
    started_at = time.monotonic()
    for node in order:
        mesh.start(node)
        await asyncio.sleep(chance.random() * BETWEEN_STARTS_S)
    again_at = await mesh.until_agreed(within_s=LATE_S)
    assert {node: mesh.id_of(node) for node in range(mesh.size)} == ids
    for change in mesh.watch.since(started_at):
        if change.picture is not None and change.picture.coordinator is not None:
            assert change.picture.ballot[0] >= terms[change.seat], f"n{change.seat} obeyed a lower term than before"
    last_start_at = max(mesh.started_at.values())
    return PowerCut(again_at - last_start_at, again_at - _last_ready(mesh, started_at))


async def starve(mesh: Mesh, for_s: float) -> tuple[int, int]:
    """Saturate every core with niced work: how many elections there were, and how many members were marked down."""
    ballot = mesh.picture(0).ballot
    began_at = time.monotonic()
    with burning():
        await asyncio.sleep(for_s)
    shown = [change.picture for change in mesh.watch.since(began_at) if change.picture is not None]
    down = {node for picture in shown for node, state in picture.states.items() if state == "down"}
    return len({picture.ballot for picture in shown} - {ballot}), len(down)


@contextmanager
def burning() -> Iterator[None]:
    """Every core busy with work of the lowest priority."""
    burners = [
        subprocess.Popen([sys.executable, "-S", "-c", "import os\nos.nice(19)\nwhile True: pass"])
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


@asynccontextmanager
async def prompting(mesh: Mesh) -> AsyncIterator[Prompts]:
    """Ask five times a second through all but the coordinator, which is first in line for these prompts.

    What is in the body begins while it works on one, after it has answered another.
    """
    victim, others = _coordinator_and_others(mesh)
    engine = mesh.engines[victim]
    async with Prompts(mesh.seats, lambda: others, body={"model": pair_of(victim)}) as prompts:
        await prompts.until_served_by(f"n{victim}", LATE_S)
        await engine.wait_until("started", engine.started + 1, LATE_S)
        yield prompts


def _coordinator_and_others(mesh: Mesh) -> tuple[int, tuple[int, ...]]:
    coordinator = mesh.coordinator()
    return coordinator, mesh.others(coordinator)


async def _all_see(mesh: Mesh, witnesses: tuple[int, ...], holds: Callable[[dict[str, str]], bool]) -> float:
    def everywhere(pictures: Pictures) -> bool:
        return all((p := pictures[node]) is not None and holds(dict(p.states)) for node in witnesses)

    return await mesh.watch.until(everywhere, LATE_S, f"nodes {witnesses} see it")


async def _answers(mesh: Mesh, group: list[int]) -> None:
    """One prompt through each node of the group."""
    async with Prompts(mesh.seats, lambda: group, rate=20.0) as prompts:
        await prompts.until_answered(len(group), LATE_S)
    assert not prompts.failed, prompts.failed


def _last_ready(mesh: Mesh, since: float) -> float:
    """When the last node gave its first answer."""
    first: dict[int, float] = {}
    for change in mesh.watch.since(since):
        if change.picture is not None:
            first.setdefault(change.seat, change.at)
    return max(first.values())
