"""Who was there when a worker died."""

from __future__ import annotations

import pytest

from tiermesh.core.suspects import FORGET_S, KEPT, Suspects
from tiermesh.errors import PoisonedRequest


def body(text: str) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def test_nobody_is_a_suspect_at_first() -> None:
    assert not Suspects().check(0.0, body("x"))


def test_one_death_makes_a_suspect_and_two_a_culprit() -> None:
    suspects = Suspects()
    suspects.note(0.0, body("x"), "first")
    assert suspects.check(1.0, body("x"))
    assert not suspects.check(1.0, body("y"))
    suspects.note(1.0, body("x"), "second")
    with pytest.raises(PoisonedRequest, match="2 times"):
        suspects.check(2.0, body("x"))
    assert not suspects.check(2.0, body("y"))


def test_a_request_that_ran_many_times_at_one_death_was_there_once() -> None:
    suspects = Suspects()
    for _ in range(16):
        suspects.note(0.0, body("x"), "first")
    assert suspects.check(1.0, body("x"))


def test_the_order_of_fields_makes_no_other_request() -> None:
    suspects = Suspects()
    suspects.note(0.0, {"a": 1, "b": 2}, "first")
    assert suspects.check(0.0, {"b": 2, "a": 1})


def test_an_answer_clears() -> None:
    suspects = Suspects()
    suspects.note(0.0, body("x"), "first")
    suspects.clear(body("x"))
    assert not suspects.check(0.0, body("x"))
    suspects.clear(body("never seen"))


def test_the_unseen_are_forgotten_by_time_and_by_number() -> None:
    suspects = Suspects()
    for number in range(KEPT + 1):
        suspects.note(0.0, body(str(number)), "first")
    assert not suspects.check(0.0, body("0"))
    assert suspects.check(0.0, body("1"))
    assert suspects.check(FORGET_S, body("1"))
    assert not suspects.check(FORGET_S + 1, body("1"))
