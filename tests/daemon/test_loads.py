"""What one node can know of another's load between two of its reports."""

from __future__ import annotations

from tiermesh.daemon.loads import Loads
from tiermesh.types import Load, Member, NodeId, SessionId, Status, View

N = NodeId("n")


def view(active: int) -> View:
    return View(members={N: Member(N, SessionId("s"), Status("n", (), load=Load(active, 4, 0)), 0)})


def test_a_node_that_gets_nothing_from_us_is_as_busy_as_it_says() -> None:
    loads = Loads()
    loads.view_changed(view(3))
    assert loads.estimate(view(3)) == {}


def test_what_was_sent_since_its_last_report_comes_on_top() -> None:
    loads = Loads()
    loads.view_changed(view(1))
    loads.in_flight[N] += 2
    assert loads.estimate(view(1)) == {N: 3}


def test_its_next_report_counts_what_it_has_got() -> None:
    loads = Loads()
    loads.view_changed(view(1))
    loads.in_flight[N] += 2
    loads.view_changed(view(3))
    assert loads.estimate(view(3)).get(N, 3) == 3
    loads.in_flight[N] += 1
    assert loads.estimate(view(3)) == {N: 4}


def test_what_has_ended_since_is_taken_off() -> None:
    loads = Loads()
    loads.in_flight[N] += 2
    loads.view_changed(view(3))
    loads.in_flight[N] -= 2
    assert loads.estimate(view(3)) == {N: 1}
    loads.view_changed(view(3))
    assert loads.estimate(view(3)) == {N: 1}, "also while the node says nothing new"


def test_a_report_older_than_our_requests_never_hides_them() -> None:
    loads = Loads()
    loads.in_flight[N] += 3
    loads.view_changed(view(1))
    loads.in_flight[N] += 1
    assert loads.estimate(view(1)) == {N: 4}


def test_nodes_that_are_gone_and_idle_ones_are_forgotten() -> None:
    loads = Loads()
    loads.view_changed(view(0))
    loads.in_flight[N] += 1
    loads.in_flight[N] -= 1
    loads.view_changed(view(0))
    assert not loads.in_flight
    loads.view_changed(View())
    assert loads.estimate(View()) == {}
