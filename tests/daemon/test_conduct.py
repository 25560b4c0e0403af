"""What a node knows of candidates by having asked them."""

from __future__ import annotations

from tiermesh.core.breaker import BreakerRule
from tiermesh.core.routing import CandidateKey, Fact
from tiermesh.daemon.conduct import Conduct
from tiermesh.types import Member, MemberState, NodeId, SessionId, Status, View

A = CandidateKey(NodeId("a"), "kernel", "m")


def view(state: MemberState = "up", **sessions: str) -> View:
    members = {
        NodeId(node): Member(NodeId(node), SessionId(session), Status(node, ()), 0, state)
        for node, session in sessions.items()
    }
    return View(members=members)


def fail(conduct: Conduct, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        conduct.started(A, now)
        conduct.failed(A, now)


def test_measurements_are_smoothed() -> None:
    conduct = Conduct()
    for first_token_s, tokens_per_s in ((1.0, 100.0), (2.0, 200.0)):
        conduct.started(A, 0)
        conduct.began(A, 0, first_token_s)
        conduct.measured(A, 0, tokens_per_s)
    assert conduct.facts(0)[A] == Fact(first_token_s=1.2, tokens_per_s=120.0)


def test_a_breaker_opens_and_lets_one_probe_through() -> None:
    conduct = Conduct()
    fail(conduct, 2)
    assert conduct.facts(0)[A].breaker == "closed"
    fail(conduct, 1)
    assert conduct.facts(0)[A].shut
    assert conduct.facts(9.9)[A].shut
    assert not conduct.facts(10)[A].shut
    conduct.started(A, 10)
    assert conduct.facts(10)[A].shut, "one probe is enough"
    conduct.began(A, 11, None)
    assert conduct.facts(11)[A] == Fact()


def test_a_probe_whose_client_left_proves_nothing() -> None:
    conduct = Conduct()
    fail(conduct, 3)
    conduct.started(A, 10)
    conduct.abandoned(A, 11)
    assert not conduct.facts(11)[A].shut


def test_retry_after_is_respected() -> None:
    conduct = Conduct()
    conduct.started(A, 0)
    conduct.failed(A, 0, retry_after_s=7)
    assert conduct.facts(6.9)[A].shut
    assert not conduct.facts(7)[A].shut


def test_streams_that_break_off_count_too() -> None:
    conduct = Conduct()
    for now in range(10):
        conduct.started(A, now)
        conduct.began(A, now, None)
        conduct.broke(A, now)
    assert conduct.facts(10)[A].shut


def test_who_was_started_anew_is_judged_anew_and_who_left_is_forgotten() -> None:
    conduct = Conduct()
    conduct.view_changed(view(a="1"))
    fail(conduct, 3)
    conduct.view_changed(view(a="1", b="1"))
    assert conduct.facts(0)[A].shut
    conduct.view_changed(view(a="2"))
    assert A not in conduct.facts(0)
    fail(conduct, 3)
    conduct.view_changed(view())
    assert A not in conduct.facts(0)


def test_who_was_down_and_is_back_is_judged_anew() -> None:
    conduct = Conduct()
    conduct.view_changed(view(a="1"))
    fail(conduct, 3)
    conduct.view_changed(view("down", a="1"))
    assert conduct.facts(0)[A].shut
    conduct.view_changed(view(a="1"))
    assert A not in conduct.facts(0)


def test_another_rule_judges_anew() -> None:
    conduct = Conduct()
    fail(conduct, 3)
    conduct.set_rule(BreakerRule())
    assert conduct.facts(0)[A].shut
    conduct.set_rule(BreakerRule(failures=9))
    assert A not in conduct.facts(0)
