"""Single events in an otherwise healthy mesh, timed: how long until everybody agrees again."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tiermesh.sim.machine import Machine
from tiermesh.sim.network import Weather
from tiermesh.sim.world import World

LIMIT_S = 20.0
"""What takes longer has failed."""
STEP_S = 0.002
"""Resolution of the figures."""
LEAST, MOST = 3, 9
"""Nodes; the seed says how many."""

Drill = Callable[[int, Weather], float]


def is_led(machines: list[Machine]) -> bool:
    """Do all follow one coordinator among them, under one ballot?"""
    views = [machine.node.view for machine in machines if machine.node is not None]
    leaders = [machine for machine in machines if machine.node is not None and machine.node.role == "lead"]
    return len(leaders) == 1 and {(view.ballot, view.coordinator) for view in views} == {
        (views[0].ballot, leaders[0].id)
    }


def stable(seed: int, weather: Weather) -> tuple[World, list[Machine]]:
    """A mesh of 3 to 9 nodes that has agreed and come to rest."""
    world, machines = _world(seed, weather)
    for machine in machines:
        world.start(machine)
    _await(world, lambda: is_led(machines))
    world.run(3.0 + world.rng.random())
    return world, machines


def formation(seed: int, weather: Weather) -> float:
    """All start at once and never met."""
    world, machines = _world(seed, weather)
    for machine in machines:
        world.clock.at(world.rng.uniform(0, 0.05), world.start, machine)
    world.run(0.05)
    return _time(world, lambda: is_led(machines))


def failover_by_end_of_file(seed: int, weather: Weather) -> float:
    """The coordinator is killed."""
    world, machines = stable(seed, weather)
    leader = _leader(machines)
    world.crash(leader)
    return _time(world, lambda: is_led(_without(machines, leader)))


def failover_by_silence(seed: int, weather: Weather) -> float:
    """The coordinator's cable is pulled."""
    world, machines = stable(seed, weather)
    leader = _leader(machines)
    _isolate(world, [leader])
    return _time(world, lambda: is_led(_without(machines, leader)))


def failover_of_two(seed: int, weather: Weather) -> float:
    """The cables of the coordinator and of its first successor are pulled."""
    world, machines = stable(seed, weather)
    leader = _leader(machines)
    assert leader.node is not None
    others = sorted(_without(machines, leader), key=lambda each: leader.node.view.members[each.id].joined)  # type: ignore[union-attr]
    _isolate(world, [leader, others[0]])
    return _time(world, lambda: is_led(others[1:]))


def merge_of_met(seed: int, weather: Weather) -> float:
    """Two halves of one mesh, each with a coordinator, can see each other again."""
    world, machines = stable(seed, weather)
    halves = _halves(world, machines)
    _await(world, lambda: all(map(is_led, halves)))
    world.run(5.0 + world.rng.random())
    world.network.heal()
    return _time(world, lambda: is_led(machines))


def merge_of_strangers(seed: int, weather: Weather) -> float:
    """Two meshes that never met can see each other."""
    world, machines = _world(seed, weather)
    halves = _halves(world, machines)
    for machine in machines:
        world.start(machine)
    _await(world, lambda: all(map(is_led, halves)))
    world.run(5.0 + 5 * world.rng.random())
    world.network.heal()
    return _time(world, lambda: is_led(machines))


def join(seed: int, weather: Weather) -> float:
    """A node starts beside a mesh."""
    world, machines = stable(seed, weather)
    newcomer = world.add("newcomer", tier=2)
    world.start(newcomer)
    return _time(world, lambda: _is_shown([*machines, newcomer], newcomer, "up"))


def member_killed(seed: int, weather: Weather) -> float:
    """A member is killed: until it is marked down everywhere."""
    world, machines = stable(seed, weather)
    member = _without(machines, _leader(machines))[0]
    world.crash(member)
    return _time(world, lambda: _is_shown(_without(machines, member), member, "down"))


def member_cut(seed: int, weather: Weather) -> float:
    """A member's cable is pulled: until it is marked down everywhere."""
    world, machines = stable(seed, weather)
    member = _without(machines, _leader(machines))[0]
    _isolate(world, [member])
    return _time(world, lambda: _is_shown(_without(machines, member), member, "down"))


def thaw(seed: int, weather: Weather) -> float:
    """A coordinator that slept for ten seconds wakes: until it is a member."""
    world, machines = stable(seed, weather)
    leader = _leader(machines)
    world.freeze(leader)
    world.run(10.0)
    world.thaw(leader)
    return _time(world, lambda: is_led(machines))


def power_cut(seed: int, weather: Weather) -> float:
    """All are killed and start again within a second in any order, with no mDNS and no `--join`."""
    world, machines = stable(seed, weather)
    world.mdns = False
    for machine in machines:
        world.crash(machine)
    world.run(0.5)
    for machine in machines:
        world.clock.at(world.now + world.rng.random(), world.start, machine)
    world.run(1.0)
    return _time(world, lambda: is_led(machines))


def out_of_reach(seed: int, weather: Weather) -> float:
    """One member can reach all but the coordinator: until it leads itself and is shown as down by the others."""
    world, machines = stable(seed, weather)
    leader = _leader(machines)
    member = _without(machines, leader)[0]
    world.network.cut(leader.id, member.id)
    return _time(world, lambda: is_led([member]) and _is_shown(_without(machines, member), member, "down"))


DRILLS: Mapping[str, Drill] = {
    "formation from a standing start": formation,
    "failover by end-of-file": failover_by_end_of_file,
    "failover by silence": failover_by_silence,
    "the same, first successor silent too": failover_of_two,
    "merge of groups that had met": merge_of_met,
    "merge of groups that never met": merge_of_strangers,
    "join": join,
    "member out by end-of-file": member_killed,
    "member out by silence": member_cut,
    "coordinator wakes, until a member": thaw,
    "power cut, no mDNS": power_cut,
    "out of the coordinator's reach only": out_of_reach,
}


def _world(seed: int, weather: Weather) -> tuple[World, list[Machine]]:
    world = World(seed, weather=weather)
    count = LEAST + seed % (MOST - LEAST + 1)
    return world, [world.add(f"n{index}", tier=1) for index in range(count)]


def _leader(machines: list[Machine]) -> Machine:
    return next(machine for machine in machines if machine.node is not None and machine.node.role == "lead")


def _without(machines: list[Machine], machine: Machine) -> list[Machine]:
    return [each for each in machines if each is not machine]


def _isolate(world: World, machines: list[Machine]) -> None:
    for machine in machines:
        for other in world.machines.values():
            if other is not machine:
                world.network.cut(machine.id, other.id)


def _halves(world: World, machines: list[Machine]) -> list[list[Machine]]:
    middle = len(machines) // 2
    halves = [machines[:middle], machines[middle:]]
    world.network.split([[machine.id for machine in half] for half in halves])
    return halves


def _is_shown(machines: list[Machine], member: Machine, state: str) -> bool:
    views = [machine.node.view for machine in machines if machine.node is not None]
    return all(member.id in view.members and view.members[member.id].state == state for view in views)


def _time(world: World, condition: Callable[[], bool]) -> float:
    took = world.run_until(condition, LIMIT_S, STEP_S)
    assert took is not None, "it did not come about"
    return took


def _await(world: World, condition: Callable[[], bool]) -> None:
    _time(world, condition)
