"""Measures what the README promises, from outside, and prints a Markdown table; exit code 1 when a bound is missed.

Run by `scripts/figures`. Rows that need network namespaces fail without root and iproute2: a figure is not skipped.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from tests.network import processes, trials
from tests.network.frames import Announcements
from tests.network.lan import Lan
from tests.network.mesh import Mesh
from tests.network.netns import obstacle
from tests.network.prompts import Prompts

NODES = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    bound: str
    measured: str
    ok: bool


@dataclass(frozen=True, slots=True)
class Scale:
    """How often and how long: the promise's own numbers, or a quick look."""

    many: int = 20
    some: int = 10
    few: int = 5
    starvation_s: float = 120.0
    idle_s: float = 60.0


QUICK = Scale(many=3, some=2, few=1, starvation_s=15.0, idle_s=20.0)


@dataclass(slots=True)
class Resolution:
    """How finely the observer looked, over all measurements."""

    gaps_s: list[float] = field(default_factory=list)

    def text(self) -> str:
        if not self.gaps_s:
            return "nothing was polled"
        ordered = sorted(self.gaps_s)
        middle, p99 = (ordered[math.floor(len(ordered) * part)] for part in (0.5, 0.99))
        shown = ((middle, "median"), (p99, "p99"), (ordered[-1], "max"))
        return "polled every " + ", ".join(f"{seconds * 1000:.0f} ms ({name})" for seconds, name in shown)


resolution = Resolution()
Measure = Callable[[Scale], Awaitable[list[Row]]]


@asynccontextmanager
async def mesh_on_lan(*, engines: bool = False) -> AsyncIterator[tuple[Mesh, Lan]]:
    with Lan(NODES) as lan, tempfile.TemporaryDirectory(prefix="tiermesh-figures-") as folder:
        async with Mesh(Path(folder), NODES, lan=lan, engines=engines) as mesh:
            yield mesh, lan
            resolution.gaps_s += mesh.watch.gaps


async def measure_join(scale: Scale) -> list[Row]:
    took = []
    for _ in range(scale.many):
        async with mesh_on_lan() as (mesh, lan), Announcements(lan) as announcements:
            await mesh.form(0, 1, 2, 3)
            took.append(await trials.join(mesh, announcements, lan, 4))
    return [limited("join: announcement to presence in every view", took, max_s=0.5)]


async def measure_formation(scale: Scale) -> list[Row]:
    formed = []
    for _ in range(scale.some):
        async with mesh_on_lan() as (mesh, _):
            formed.append(await trials.form(mesh))
    row = limited(
        "formation: five started together, after the last is ready", [f.after_last_ready_s for f in formed], 2.0
    )
    ballots = max(f.ballots for f in formed)
    start = statistics.median(f.after_start_s for f in formed)
    return [
        Row(row.what, row.bound, f"{row.measured}; {start:.2f} s from the start of the processes (median)", row.ok),
        Row("formation: ballots that anybody followed on the way", "1", str(ballots), ballots == 1),
    ]


async def measure_coordinator_killed(scale: Scale) -> list[Row]:
    async with mesh_on_lan(engines=True) as (mesh, _):
        await mesh.form()
        replaced, prompts = [], []
        for _ in range(scale.many):
            async with trials.prompting(mesh) as running:
                replaced.append((await trials.kill_coordinator(mesh)).known_s)
            prompts.append(running)
    return [
        limited("coordinator SIGKILLed: the new one known to all", replaced, max_s=0.8, median_s=0.3),
        unharmed("prompts meanwhile, 5/s, the lost node first in line", prompts),
    ]


async def measure_coordinator_cut(scale: Scale) -> list[Row]:
    async with mesh_on_lan(engines=True) as (mesh, lan):
        await mesh.form()
        replaced, prompts = [], []
        for _ in range(scale.some):
            async with trials.prompting(mesh) as running:
                replaced.append((await trials.cut_coordinator(mesh, lan)).known_s)
            prompts.append(running)
    return [
        limited("coordinator's link cut: the new one known to all", replaced, max_s=3.0),
        unharmed("prompts meanwhile, 5/s, the lost node first in line", prompts),
    ]


async def measure_member(scale: Scale) -> list[Row]:
    async with mesh_on_lan() as (mesh, lan):
        await mesh.form()
        killed = [await trials.kill_member(mesh) for _ in range(scale.many)]
        cut = [await trials.cut_member(mesh, lan) for _ in range(scale.some)]
    return [
        limited("member SIGKILLed: marked down everywhere", [a.down_s for a in killed], max_s=0.3),
        noted("member started again: up everywhere, from the process's start", [a.back_s for a in killed]),
        limited("member's link cut: marked down everywhere", [a.down_s for a in cut], max_s=2.0),
        noted("member's link mended: up everywhere", [a.back_s for a in cut]),
    ]


async def measure_partition(scale: Scale) -> list[Row]:
    async with mesh_on_lan(engines=True) as (mesh, lan):
        await mesh.form()
        healings = [
            await trials.part_and_heal(mesh, lan, coordinator_in_larger=number % 2 == 0) for number in range(scale.some)
        ]
    return [
        noted("partition 3 + 2: each half has its coordinator, and answers", [h.apart_s for h in healings]),
        limited("heal: one coordinator, the larger group's; nobody restarted", [h.one_s for h in healings], max_s=3.0),
    ]


async def measure_freeze(scale: Scale) -> list[Row]:
    async with mesh_on_lan(engines=True) as (mesh, _):
        await mesh.form()
        thaws, prompts = [], []
        for _ in range(scale.few):
            async with trials.prompting(mesh) as running:
                thaws.append(await trials.freeze_coordinator(mesh, for_s=10))
            prompts.append(running)
    return [
        limited("coordinator frozen for 10 s: replaced", [t.replaced_s for t in thaws], max_s=3.0),
        limited("continued: a member, its old ballot obeyed by nobody", [t.member_s for t in thaws], max_s=3.0),
        unharmed("prompts meanwhile, 5/s, the lost node first in line", prompts),
    ]


async def measure_starvation(scale: Scale) -> list[Row]:
    async with mesh_on_lan() as (mesh, _):
        await mesh.form()
        elections, down = await trials.starve(mesh, scale.starvation_s)
    what = f"all cores saturated by niced work for {scale.starvation_s:.0f} s"
    measured = f"{elections} elections, {down} marked down"
    return [Row(what, "0 elections, 0 marked down", measured, (elections, down) == (0, 0))]


async def measure_power_cut(scale: Scale) -> list[Row]:
    cuts = []
    for number in range(scale.some):
        async with mesh_on_lan() as (mesh, _):
            await mesh.form()
            cuts.append(await trials.cut_power(mesh, random.Random(number)))
    return [
        limited(
            "power cut: one mesh again without mDNS and `--join`, same ids, no lower term",
            [c.after_last_start_s for c in cuts],
            max_s=5.0,
        ),
        noted("the same, from when the last one answers", [c.after_last_ready_s for c in cuts]),
    ]


async def measure_start_up(scale: Scale) -> list[Row]:
    helps = [processes.help_s() for _ in range(scale.many)]
    with tempfile.TemporaryDirectory(prefix="tiermesh-figures-") as folder:
        ready = [await processes.ready_s(Path(folder) / str(number)) for number in range(scale.many)]
    return [
        limited("`mesh --help`", helps, max_s=0.4),
        limited("`mesh up` to ready, without a model", ready, max_s=2.0),
    ]


async def measure_idle(scale: Scale) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="tiermesh-figures-") as folder:
        idles = await processes.idle(Path(folder), nodes=3, for_s=scale.idle_s)
    memory, cpu = max(i.memory_bytes for i in idles) / 1e6, max(i.cpu for i in idles) * 100
    return [
        Row("idle daemon of three: resident memory, the largest", "<= 90 MB", f"{memory:.0f} MB", memory <= 90),
        Row(f"the same: of one core, over {scale.idle_s:.0f} s, the busiest", "<= 2 %", f"{cpu:.1f} %", cpu <= 2),
    ]


async def measure_orphans(scale: Scale) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="tiermesh-figures-") as folder:
        found = [await processes.orphans(Path(folder) / str(number), after_s=5.0) for number in range(scale.few)]
    left, children = sum(f.left for f in found), sum(f.children for f in found)
    measured = f"{left} of {children} worker processes ({scale.few} daemons)"
    return [Row("orphans 5 s after a daemon's SIGKILL", "0", measured, left == 0 and children > 0)]


MEASURES: dict[str, Measure] = {
    "join": measure_join,
    "formation": measure_formation,
    "coordinator-killed": measure_coordinator_killed,
    "coordinator-cut": measure_coordinator_cut,
    "member": measure_member,
    "partition": measure_partition,
    "freeze": measure_freeze,
    "starvation": measure_starvation,
    "power-cut": measure_power_cut,
    "start-up": measure_start_up,
    "idle": measure_idle,
    "orphans": measure_orphans,
}
ON_LOOPBACK = {"start-up", "idle", "orphans"}


def limited(what: str, values: Sequence[float], max_s: float | None = None, median_s: float | None = None) -> Row:
    """A row that is kept or missed."""
    bounds = [f"max <= {max_s} s"] if max_s is not None else []
    bounds += [f"median <= {median_s} s"] if median_s is not None else []
    ok = (max_s is None or max(values) <= max_s) and (median_s is None or statistics.median(values) <= median_s)
    return Row(what, ", ".join(bounds), spread(values), ok)


def noted(what: str, values: Sequence[float]) -> Row:
    """A row without a bound."""
    return Row(what, "", spread(values), True)


def unharmed(what: str, runs: Sequence[Prompts]) -> Row:
    """No prompt failed, whatever became of the node that was to answer it."""
    answers = [answer for run in runs for answer in run.answers]
    failed = [answer for answer in answers if not answer.ok]
    for answer in failed:
        say(f"failed prompt: {answer}")
    moved = sum(answer.attempts > 1 for answer in answers)
    slowest_s = max(answer.took_s for answer in answers)
    measured = f"{len(failed)} of {len(answers)} failed; {moved} moved to another node; slowest {slowest_s:.2f} s"
    return Row(what, "0 failed", measured, not failed)


def spread(values: Sequence[float]) -> str:
    return f"median {statistics.median(values):.3f} s, max {max(values):.3f} s, n = {len(values)}"


def machine() -> str:
    """What it was measured on."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    memory_gib = psutil.virtual_memory().total / 2**30
    return (
        f"{model}, {os.cpu_count()} cores, {memory_gib:.0f} GiB; {platform.system()} {platform.release()}; "
        f"Python {platform.python_version()}; load {os.getloadavg()[0]:.1f} at the start"
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except FileNotFoundError:
        return []


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def measured(name: str, scale: Scale) -> list[Row]:
    """The rows of one measurement; one row that says so when it could not be finished."""
    why_not = None if name in ON_LOOPBACK else obstacle()
    if why_not is not None:
        return [Row(name, "", why_not, ok=False)]
    began_at = time.monotonic()
    seen = len(resolution.gaps_s)
    say(f"· {name} ...")
    try:
        rows = await MEASURES[name](scale)
    except (AssertionError, TimeoutError, OSError, RuntimeError) as error:
        say(f"{name}: {error!r}")
        rows = [Row(name, "", f"failed: {str(error).splitlines()[0] if str(error) else repr(error)}", ok=False)]
    for row in rows:
        say(f"  {row.what}: {row.measured}{'' if row.ok else '  MISSED'}")
    slowest_s = max(resolution.gaps_s[seen:], default=0.0)
    say(f"  took {time.monotonic() - began_at:.0f} s; longest time between two answers of a node: {slowest_s:.3f} s")
    return rows


async def run(names: Sequence[str], scale: Scale) -> bool:
    """Measure, print the table, and say whether all bounds were kept."""
    facts = machine()
    rows = [row for name in names for row in await measured(name, scale)]
    print("| what | must reach | measured | verdict |\n|---|---|---|---|")
    for row in rows:
        verdict = ("kept" if row.bound else "") if row.ok else "**missed**"
        print(f"| {row.what} | {row.bound} | {row.measured} | {verdict} |")
    print(f"\nMeasured on: {facts}. Observed by HTTP: {resolution.text()}.")
    return all(row.ok for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/figures", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(MEASURES), help="measure only this; repeatable")
    parser.add_argument("--quick", action="store_true", help="a few repetitions instead of all")
    arguments = parser.parse_args()
    kept = asyncio.run(run(arguments.only or list(MEASURES), QUICK if arguments.quick else Scale()))
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
