"""A large mesh: do a thousand nodes join, lose their coordinator and agree again, and what does it cost?"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tiermesh.core.messages import Message, Update, encode
from tiermesh.sim.drills import is_led
from tiermesh.sim.machine import Machine
from tiermesh.sim.world import World

CPU_PER_MESSAGE_S = 0.0001
"""What a message costs either end."""
ARRIVAL_S = 5.0
"""The nodes start within this time, each knowing one that started before."""
REST_S = 10.0
"""How long messages at rest are counted."""
LIMIT_S = 60.0
"""What takes longer has failed."""


@dataclass(slots=True)
class Meter:
    """Counts views and their bytes as they would be on the wire."""

    updates: int = 0
    size_bytes: int = 0
    _last: Message | None = None
    _last_bytes: int = 0

    def count(self, message: Message) -> None:
        """A message is sent; equal objects are measured once."""
        if not isinstance(message, Update):
            return
        if message is not self._last:
            self._last, self._last_bytes = message, len(json.dumps(encode(message), separators=(",", ":")))
        self.updates += 1
        self.size_bytes += self._last_bytes


@dataclass(frozen=True, slots=True)
class Report:
    """Figures by name, with their unit."""

    figures: tuple[tuple[str, float, str], ...]

    def __iter__(self) -> Iterator[tuple[str, float, str]]:
        return iter(self.figures)

    def value(self, name: str) -> float:
        """One figure."""
        return next(value for each, value, _ in self.figures if each == name)


def run_large(count: int, seed: int = 1) -> Report:
    """Join, rest, lose the coordinator by SIGKILL, take in one more, lose the next by a pulled cable."""
    world = World(seed, mdns=False, cpu_per_message=CPU_PER_MESSAGE_S)
    meter = Meter()
    world.on_send = meter.count
    figures: list[tuple[str, float, str]] = []
    machines = _start_one_after_another(world, count)
    figures.append(("agreed after the last start", _agree(world, machines), "s"))
    world.run(2 * REST_S)

    sent = world.sent.total()
    world.run(REST_S)
    figures.append(("messages a node at rest", (world.sent.total() - sent) / count / REST_S, "1/s"))

    leader = _leader(machines)
    world.crash(leader)
    machines.remove(leader)
    figures.append(("agreed after SIGKILL of the coordinator", _agree(world, machines), "s"))
    world.run(REST_S)

    meter.updates = meter.size_bytes = 0
    newcomer = world.add("newcomer", joins=[machines[0].id])
    world.start(newcomer)
    machines.append(newcomer)
    figures.append(("one more joined", _agree(world, machines), "s"))
    world.run(1.0)
    figures.append(("views sent for it, a node", meter.updates / count, ""))
    figures.append(("bytes a view", meter.size_bytes / max(meter.updates, 1), "B"))

    leader = _leader(machines)
    for machine in machines:
        world.network.cut(leader.id, machine.id)
    machines.remove(leader)
    figures.append(("agreed after silence of the coordinator", _agree(world, machines), "s"))
    figures.append(("elections", world.elections, ""))
    figures.append(("events", world.clock.events, ""))
    return Report(tuple(figures))


def _start_one_after_another(world: World, count: int) -> list[Machine]:
    rng = random.Random(count)
    machines: list[Machine] = []
    for index in range(count):
        joins = [rng.choice(machines).id] if machines else []
        machines.append(world.add(f"n{index:04d}", joins=joins))
        world.clock.at(index * ARRIVAL_S / count, world.start, machines[-1])
    world.run(ARRIVAL_S)
    return machines


def _agree(world: World, machines: list[Machine]) -> float:
    """Until all follow one coordinator, and it and all views say so."""
    took = world.run_until(lambda: _is_complete(machines), LIMIT_S, step=0.05)
    assert took is not None, "no agreement"
    return took


def _is_complete(machines: list[Machine]) -> bool:
    if any(machine.node is None or machine.node.view.coordinator is None for machine in machines):
        return False
    return is_led(machines) and _leader(machines).node.size == len(machines)  # type: ignore[union-attr]


def _leader(machines: list[Machine]) -> Machine:
    return next(machine for machine in machines if machine.node is not None and machine.node.role == "lead")
