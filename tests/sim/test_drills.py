"""What a person would notice, in simulated seconds. Bounds are about twice what is measured, see scripts/simulate."""

from __future__ import annotations

import random

import pytest

from tiermesh.sim import drills
from tiermesh.sim.drills import DRILLS
from tiermesh.sim.machine import Machine
from tiermesh.sim.network import WIFI, WIRED

SEEDS = range(14)
"""Two for each size from 3 to 9."""

BOUNDS_S = {
    "formation from a standing start": (0.8, 1.0),
    "failover by end-of-file": (0.02, 0.3),
    "failover by silence": (1.5, 1.7),
    "the same, first successor silent too": (2.5, 2.5),
    "merge of groups that had met": (1.5, 1.7),
    "merge of groups that never met": (5.5, 6.0),
    "join": (0.05, 0.2),
    "member out by end-of-file": (0.02, 0.2),
    "member out by silence": (1.5, 1.6),
    "coordinator wakes, until a member": (0.1, 0.3),
    "power cut, no mDNS": (2.0, 2.0),
    "out of the coordinator's reach only": (8.0, 8.0),
}


def test_every_drill_has_a_bound() -> None:
    assert set(BOUNDS_S) == set(DRILLS)


@pytest.mark.parametrize("name", DRILLS)
def test_wired(name: str) -> None:
    assert max(DRILLS[name](seed, WIRED) for seed in SEEDS) <= BOUNDS_S[name][0]


@pytest.mark.parametrize("name", DRILLS)
def test_wifi(name: str) -> None:
    assert max(DRILLS[name](seed, WIFI) for seed in SEEDS) <= BOUNDS_S[name][1]


@pytest.mark.parametrize("seed", SEEDS)
def test_starved_loops_suspect_nobody(seed: int) -> None:
    """Two minutes in which every daemon stands still for up to 0.3 s again and again: no election, nobody down."""
    world, machines = drills.stable(seed, WIRED)
    rng = random.Random(seed)

    def stall(machine: Machine) -> None:
        world.freeze(machine)
        world.clock.at(world.now + rng.uniform(0.05, 0.3), resume, machine)

    def resume(machine: Machine) -> None:
        world.thaw(machine)
        world.clock.at(world.now + rng.uniform(0.001, 0.3), stall, machine)

    for machine in machines:
        stall(machine)
    before = world.transitions.copy()
    world.run(120.0)
    assert world.transitions == before
