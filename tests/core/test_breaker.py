"""The breaker's table, event by event."""

from __future__ import annotations

import pytest

from tiermesh.core.breaker import PROBE_LOOK_S, Breaker, BreakerRule

RULE = BreakerRule()


def opened(now: float = 0.0, rule: BreakerRule = RULE) -> Breaker:
    """A breaker that has just been opened by failures in a row."""
    breaker = Breaker(rule)
    for _ in range(rule.failures):
        breaker.failed(now)
    assert breaker.state(now) == "open"
    return breaker


def probe_fails(breaker: Breaker, now: float) -> float:
    """Let a probe fail at `now`; how long it is open after that."""
    assert breaker.allows(now)
    breaker.started(now)
    breaker.failed(now)
    return breaker.retry_after_s(now)


def test_a_new_one_is_closed_and_lets_everybody_through() -> None:
    breaker = Breaker(RULE)
    for _ in range(5):
        assert breaker.allows(0)
        breaker.started(0)
    assert breaker.state(0) == "closed"
    assert breaker.opens_until is None


def test_the_third_failure_in_a_row_opens_it_for_ten_seconds() -> None:
    breaker = Breaker(RULE)
    for now in (0.0, 1.0):
        breaker.failed(now)
        assert breaker.allows(now)
    breaker.failed(2.0)
    assert breaker.state(2.0) == "open"
    assert breaker.opens_until == 12.0
    assert not breaker.allows(11.9)
    assert breaker.retry_after_s(5.0) == 7.0
    assert breaker.state(12.0) == "half_open"


def test_a_success_between_failures_starts_the_row_anew() -> None:
    breaker = Breaker(RULE)
    for outcome in (False, False, True, False, False):
        breaker.succeeded(0) if outcome else breaker.failed(0)
    assert breaker.state(0) == "closed"


def test_half_open_lets_one_probe_through_at_a_time() -> None:
    breaker = opened()
    assert breaker.allows(10)
    breaker.started(10)
    assert not breaker.allows(10)
    assert breaker.retry_after_s(10) == PROBE_LOOK_S
    assert breaker.state(10) == "half_open"


def test_a_probe_that_succeeds_closes_it_as_new() -> None:
    breaker = opened()
    breaker.started(10)
    breaker.succeeded(11)
    assert breaker.state(11) == "closed"
    breaker.failed(12)
    breaker.failed(13)
    assert breaker.state(13) == "closed", "what was before does not count"
    breaker.failed(14)
    assert breaker.retry_after_s(14) == RULE.open_s, "nor does the time it was open"


def test_every_probe_that_fails_doubles_the_time_up_to_a_limit() -> None:
    breaker, now, waits = opened(), 0.0, []
    for _ in range(7):
        now += breaker.retry_after_s(now)
        waits.append(probe_fails(breaker, now))
    assert waits == [20, 40, 80, 160, 300, 300, 300]


def test_a_probe_without_a_verdict_makes_room_for_the_next() -> None:
    breaker = opened()
    breaker.started(10)
    breaker.abandoned()
    assert breaker.allows(10)
    assert breaker.state(10) == "half_open"


def test_outcomes_of_requests_sent_before_it_opened_change_nothing() -> None:
    breaker = opened()
    for _ in range(17):
        breaker.failed(1)
    assert breaker.opens_until == 10, "a burst opens it once"
    breaker.succeeded(2)
    assert breaker.state(2) == "open", "a straggler does not close it"


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("+-" * 4 + "+", "closed"),  # 4 of 9: too few to judge
        ("+-" * 5, "open"),  # 5 of 10
        ("++-" * 10, "closed"),  # a third
        ("+" * 40 + "+-" * 9, "closed"),  # 9 of the last 20
        ("+" * 40 + "+-" * 10, "open"),  # 10 of the last 20: what was long ago is forgotten
    ],
)
def test_half_of_the_last_twenty_opens_it_once_there_are_ten(outcomes: str, state: str) -> None:
    breaker = Breaker(RULE)
    for outcome in outcomes:
        breaker.succeeded(0) if outcome == "+" else breaker.failed(0)
    assert breaker.state(0) == state


def test_a_slow_first_token_is_a_failure_and_an_unknown_one_is_not() -> None:
    breaker = Breaker(RULE)
    for _ in range(3):
        breaker.succeeded(0, RULE.slow_first_token_s)
        breaker.succeeded(0, None)
    assert breaker.state(0) == "closed"
    for _ in range(3):
        breaker.succeeded(0, RULE.slow_first_token_s + 0.1)
    assert breaker.state(0) == "open"
    breaker.started(10)
    breaker.succeeded(10, RULE.slow_first_token_s + 0.1)
    assert breaker.retry_after_s(10) == 20, "of a probe too"


def test_retry_after_is_obeyed_and_blames_nobody() -> None:
    breaker = Breaker(RULE)
    for now in (0.0, 10.0, 20.0, 30.0):
        breaker.failed(now, 5.0)
        assert breaker.state(now + 4.9) == "open"
        assert breaker.retry_after_s(now + 4) == 1
        assert breaker.state(now + 5) == "closed", "no probe: it is not ill"
        assert breaker.allows(now + 5)


def test_the_longest_retry_after_holds_within_the_limit() -> None:
    breaker = Breaker(RULE)
    breaker.failed(0, 5)
    breaker.failed(1, 1)
    assert breaker.opens_until == 5
    breaker.failed(2, 1e9)
    assert breaker.opens_until == 2 + RULE.open_most_s
    past = Breaker(RULE)
    past.failed(0, -7)
    assert past.allows(0)


def test_a_probe_told_to_come_back_later_is_followed_by_another_one_without_doubling() -> None:
    breaker = opened()
    breaker.started(10)
    breaker.failed(10, 3)
    assert breaker.retry_after_s(10) == 3
    assert breaker.state(13) == "half_open"
    assert probe_fails(breaker, 13) == 20


def test_all_of_it_is_configurable() -> None:
    rule = BreakerRule(failures=1, open_s=1, open_most_s=3, rate_window=4, rate_least=4, slow_first_token_s=0.5)
    breaker = opened(0, rule)
    assert breaker.retry_after_s(0) == 1
    assert probe_fails(breaker, 1) == 2
    assert probe_fails(breaker, 3) == 3
