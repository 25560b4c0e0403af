"""What `/metrics` tells of the mesh: always what holds now, and readable by Prometheus' own parser."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tiermesh.core.breaker import BreakerState
from tiermesh.core.offers import CandidateKey
from tiermesh.daemon.gauges import MeshGauges
from tiermesh.types import Ballot, Health, Load, Member, NodeId, SessionId, Status, View

A, B, C = (NodeId(letter * 32) for letter in "abc")
SESSION = SessionId("0000000000001-00000000")


def member(node: NodeId, name: str, **status: object) -> Member:
    return Member(node, SESSION, replace(Status(name, ()), **status), 1)  # type: ignore[arg-type]


@dataclass
class Node:
    """Node A, as the gauges read it."""

    view: View = field(default_factory=View)
    waiting: dict[str, int] = field(default_factory=dict)
    breakers: dict[CandidateKey, BreakerState] = field(default_factory=dict)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.gauges = MeshGauges(
            self.registry,
            me=A,
            view=lambda: self.view,
            load=lambda: Load(1, 4, 2),
            waiting=lambda: self.waiting,
            breakers=lambda: self.breakers,
        )

    def read(self) -> dict[str, float]:
        """Every sample by its name and labels, as Prometheus reads them."""
        text = generate_latest(self.registry).decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {" ".join([s.name.removeprefix("tiermesh_"), *s.labels.values()]): s.value for s in samples}


@pytest.fixture
def node() -> Node:
    return Node(View(Ballot(7, B), 12, B, {A: member(A, "a", latency_ms=1.5), B: member(B, "b")}))


def test_view_uplink_and_load_are_those_of_now(node: Node) -> None:
    said = node.read()
    assert (said["view_version"], said["term"], said["coordinator"], said["led"]) == (12, 7, 0, 1)
    assert said["uplink_seconds"] == 0.0015
    assert (said["engine_active"], said["engine_slots"], said["engine_queued"]) == (1, 4, 2)
    node.view = View(Ballot(8, A), 13, A, {A: member(A, "a")})
    said = node.read()
    assert (said["view_version"], said["term"], said["coordinator"]) == (13, 8, 1)
    assert "uplink_seconds" not in said


def test_members_by_state(node: Node) -> None:
    gone = replace(member(C, "c"), state="down", down_since=1.0)
    node.view = replace(node.view, members={A: member(A, "a"), B: member(B, "b", state="draining"), C: gone})
    said = node.read()
    assert [said[f"members {state}"] for state in ("up", "draining", "down")] == [1, 1, 1]


def test_health_of_those_that_tell_it(node: Node) -> None:
    gone = replace(member(C, "c", health=Health(3)), state="down", down_since=1.0)
    node.view = replace(node.view, members={A: member(A, "twin", health=Health(70)), B: member(B, "twin"), C: gone})
    assert {k: v for k, v in node.read().items() if k.startswith("health")} == {f"health_score twin {A}": 70}


def test_queues_and_breakers(node: Node) -> None:
    node.waiting = {"m": 3}
    node.breakers = {
        CandidateKey(A, "e", "m"): "closed",
        CandidateKey(B, "e", "m"): "open",
        CandidateKey(C, "e", 'says "hi"\n'): "half_open",
    }
    said = node.read()
    assert said["waiting m"] == 3
    assert {name: value for name, value in said.items() if name.startswith("breaker")} == {
        f"breaker e m a {A}": 0,
        f"breaker e m b {B}": 2,
        f'breaker e says "hi"\n {C} {C}': 1,
    }


def test_changes_of_coordinator_are_counted_and_gaps_are_not(node: Node) -> None:
    for coordinator in (B, None, B, A, A):
        node.gauges.view_changed(replace(node.view, coordinator=coordinator))
    assert node.read()["coordinator_changes_total"] == 2
