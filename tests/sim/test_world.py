"""The simulated world does to machines what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tiermesh.core.effects import Persist
from tiermesh.core.messages import Grant
from tiermesh.sim.invariants import Invariants, Violation
from tiermesh.sim.machine import Disk, Machine
from tiermesh.sim.network import WIRED, Network, Weather
from tiermesh.sim.world import World
from tiermesh.types import NO_BALLOT, Address, Ballot, Contact, NodeId, Policy, View

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


def pair(seed: int = 1, **options: object) -> tuple[World, Machine, Machine]:
    world = World(seed, **options)  # type: ignore[arg-type]
    one, other = world.add("a", tier=2), world.add("b", tier=1)
    world.start(one)
    world.start(other)
    return world, one, other


def role(machine: Machine) -> str:
    return machine.node.role if machine.node is not None else "off"


def test_two_machines_find_each_other_and_the_higher_tier_leads() -> None:
    world, one, other = pair()
    world.run(2.0)
    assert (role(one), role(other)) == ("lead", "follow")
    assert one.disk.promised == other.disk.promised != NO_BALLOT
    assert set(other.disk.contacts) == {A}


def test_what_follows_a_persist_waits_for_the_disk() -> None:
    world, one, _ = pair(disk_latency=(0.5, 0.5))
    world.run(0.6)
    assert one.writing is not None
    assert world.sent["Claim"] == 0
    world.run(0.5)
    assert world.sent["Claim"] > 0


@pytest.mark.parametrize("seed", range(12))
def test_a_write_in_flight_may_be_lost_in_a_crash_and_what_waited_for_it_is(seed: int) -> None:
    world, one, _ = pair(seed, disk_latency=(0.5, 0.5))
    world.run(0.6)
    assert isinstance(one.writing, Persist)
    wanted = one.writing.promised
    world.crash(one)
    assert one.disk.promised in (NO_BALLOT, wanted)
    assert not one.effects


def test_a_crash_is_seen_by_linked_peers_at_once_and_silence_after_a_cut_later() -> None:
    world, one, other = pair()
    world.run(2.0)
    world.crash(one)
    world.run(0.01)
    assert role(other) == "lead"

    world, one, other = pair()
    world.run(2.0)
    world.network.cut(A, B)
    world.run(0.9)
    assert role(other) == "follow"
    world.run(1.0)
    assert role(other) == "lead"


def test_a_cut_one_way_lets_the_other_way_through() -> None:
    network = Network(World(1).rng, WIRED)
    network.cut_one_way(A, B)
    assert not network.passes(A, B)
    assert network.passes(B, A)
    assert not network.is_open(B, A), "a connection needs both ways"
    network.heal()
    assert network.is_open(A, B)


def test_split_leaves_ways_within_groups_only() -> None:
    network = Network(World(1).rng, WIRED)
    network.split([[A, B], [C]])
    assert network.is_open(A, B)
    assert not network.passes(A, C)
    assert not network.passes(C, B)


def test_loss_and_duplication_are_shares() -> None:
    network = Network(World(1).rng, Weather(median=0.001, loss=0.2, duplication=0.1))
    copies = [network.copies() for _ in range(2000)]
    assert 300 < copies.count(0) < 500
    assert 100 < copies.count(2) < 240


def test_mail_of_a_frozen_machine_is_read_when_it_thaws() -> None:
    world, one, other = pair()
    world.run(2.0)
    world.freeze(other)
    one.status = replace(one.status, name="new name")
    world.describe(one)
    world.run(0.6)
    assert other.mailbox
    world.thaw(other)
    assert not other.mailbox
    assert other.node is not None
    assert other.node.view.members[A].status.name == "new name"


def test_a_restarted_machine_remembers_its_disk_only() -> None:
    world, _, other = pair()
    world.run(2.0)
    promised = other.disk.promised
    world.crash(other)
    world.start(other)
    assert other.node is not None
    assert other.node.promised == promised
    assert set(other.node.view.members) == {B}
    world.run(1.0)
    assert role(other) == "follow"


def test_forgotten_contacts_leave_the_disk() -> None:
    disk = Disk()
    disk.remember((Contact((Address("x:1"),), A),))
    assert set(disk.contacts) == {A}
    disk.remember((Contact((), A),))
    assert not disk.contacts


class TestInvariants:
    """Each kind of violation is told."""

    low, high = Ballot(5, A), Ballot(7, B)

    def test_one_term_granted_twice(self) -> None:
        judge = Invariants()
        judge.said(0, C, self.low, A, Grant(self.low))
        rival = Ballot(5, B)
        with pytest.raises(Violation, match="granted term 5"):
            judge.said(0, C, rival, B, Grant(rival))

    def test_a_grant_that_is_not_on_disk(self) -> None:
        with pytest.raises(Violation, match="disk"):
            Invariants().said(0, C, NO_BALLOT, A, Grant(self.low))

    def test_obeying_below_the_promise(self) -> None:
        judge = Invariants()
        judge.said(0, C, self.high, B, Grant(self.high))
        with pytest.raises(Violation, match="obeys"):
            judge.showed(C, self.high, View(self.low, 1, A), run=1)

    def test_a_ballot_held_twice(self) -> None:
        judge = Invariants()
        judge.showed(A, self.low, View(self.low, 1, A), run=1)
        with pytest.raises(Violation, match="was held"):
            judge.showed(A, self.low, View(self.low, 1, A), run=3)

    def test_a_larger_group_deposed(self) -> None:
        judge = Invariants()
        judge.sized(0.0, A, 5)
        judge.sized(0.0, B, 2)
        judge.sized(10.0, A, 5)
        with pytest.raises(Violation, match="yielded"):
            judge.yielded(10.0, A, B)
        judge.yielded(10.0, B, A)

    def test_a_late_win(self) -> None:
        judge = Invariants()
        judge.claims[self.low] = {C: 1.0}
        judge.said(1.0, C, self.low, A, Grant(self.low))
        with pytest.raises(Violation, match="after claiming"):
            judge.crowned(2.0, A, 1, self.low, lambda node, since: True)


def test_a_policy_reaches_everybody_and_survives_a_restart() -> None:
    world, one, other = pair()
    world.run(2.0)
    world.set_policy(one, {"routing": {"prefer_local": True}})
    world.run(0.5)
    assert other.node is not None
    assert other.node.view.policy.body == {"routing": {"prefer_local": True}}
    assert other.disk.policy == Policy(one.disk.promised, 1, {"routing": {"prefer_local": True}})


def test_a_removed_member_quits_and_is_forgotten() -> None:
    world, one, other = pair()
    world.run(2.0)
    world.remove(one, B)
    world.run(0.5)
    assert other.node is None
    assert [node for node, _ in world.quits] == [B]
    assert one.node is not None
    assert set(one.node.view.members) == {A}
    assert B not in one.disk.contacts
