"""A judge that finds nothing is worth nothing: what must be a violation is one, and what may be is none."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import pytest
from benchmarks.chaos.dialects import DIALECTS, read_refusal
from benchmarks.chaos.faults import COMPUTING, drawn
from benchmarks.chaos.ledger import HANG_S, Entry, Expected, judge

EXPECTED = {"q": Expected("one two three", 3)}


def chunk(text: str, **more: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}], **more}).encode() + b"\n\n"


USAGE = b'data: {"choices": [], "usage": {"completion_tokens": 3}}\n\n'
DONE = b"data: [DONE]\n\n"
FAILURE = b'data: {"error": {"message": "nobody is left", "type": "server_error", "code": "engine_failed"}}\n\n'
HEAD = chunk("one ") + chunk("two ")
WHOLE = HEAD + chunk("three") + USAGE + DONE


def entry(received: bytes = WHOLE, *, took_s: float | None = 1.0, status: int | None = 200, **more: Any) -> Entry:
    ended = None if took_s is None else 100.0 + took_s
    return Entry("1", "chat, streamed", "desk", "tiny", "q", 100.0, status, bytearray(received), ended, **more)


@pytest.mark.parametrize(
    ("one", "violation"),
    [
        (entry(), None),
        (entry(HEAD + FAILURE + DONE), None),
        (entry(HEAD, left=True), None),
        (entry(b'{"error": {"message": "busy", "code": "unavailable"}}', status=503), None),
        (entry(took_s=None), "hung"),
        (entry(took_s=HANG_S + 1), "hung"),
        (entry(HEAD), "the stream just ends"),
        (entry(WHOLE.removesuffix(DONE)), "the stream just ends"),
        (entry(b"", status=None, trouble="connection refused"), "connection refused"),
        (entry(chunk("one ") + chunk("three") + USAGE + DONE), "other words from 5"),
        (entry(HEAD + chunk("two ") + chunk("three") + USAGE + DONE), "other words from 9"),
        (entry(HEAD + chunk("two ") + FAILURE + DONE), "other words from 9"),
        (entry(chunk("two "), left=True), "other words from 0"),
        (entry(WHOLE.replace(b'"completion_tokens": 3', b'"completion_tokens": 4')), "usage says 4"),
        (entry(HEAD + chunk("three") + DONE), "usage says None"),
        (entry(WHOLE + chunk("four")), "something after the end"),
        (entry(WHOLE + DONE), "something after the end"),
        (entry(b"data: {half\n\n"), "JSONDecodeError"),
        (entry(b"<html>", status=502), "without a reason"),
        (entry(b'{"error": {"message": "internal error; see the log"}}', status=500), "a bug"),
        (entry(HEAD + b'data: {"error": {"message": "internal error"}}\n\n'), "a bug"),
    ],
)
def test_the_judge(one: Entry, violation: str | None) -> None:
    found = judge([one], EXPECTED, {}).violations
    if violation is None:
        assert found == []
    else:
        assert len(found) == 1
        assert violation in found[0]


@pytest.mark.parametrize(
    ("died", "excused"), [((100.5, 110.0), True), ((90.0, 100.5), True), ((90.0, 99.0), False), ((102.0, 110.0), False)]
)
def test_only_the_death_of_its_own_node_excuses_a_cut(died: tuple[float, float], *, excused: bool) -> None:
    cut = entry(HEAD, trouble="reset")
    assert (judge([cut], EXPECTED, {"desk": [died]}).violations == []) is excused
    assert judge([cut], EXPECTED, {"door": [died]}).violations
    assert judge([entry(chunk("two "), trouble="reset")], EXPECTED, {"desk": [died]}).violations, "other words"


def test_shares_leave_out_who_went() -> None:
    cut, failed = entry(HEAD, trouble="reset"), entry(HEAD + FAILURE + DONE)
    verdict = judge([entry(), entry(HEAD, left=True), cut, failed], EXPECTED, {"desk": [(100.5, 110.0)]})
    assert verdict.share_whole("tiny") == 0.5
    assert verdict.share_whole("another") == 0.0


@pytest.mark.parametrize(
    ("dialect", "received"),
    [
        ("chat", {"choices": [{"message": {"content": "one two three"}}], "usage": {"completion_tokens": 3}}),
        ("complete", {"content": "one two three", "usage": {"completion_tokens": 3}}),
        ("ollama", {"message": {"content": "one two three"}, "done": True, "eval_count": 3}),
    ],
)
def test_an_answer_in_one_piece_is_whole_or_torn(dialect: str, received: dict[str, Any]) -> None:
    read = next(each.read for each in DIALECTS if each.name == dialect)
    body = json.dumps(received).encode() + b"\n"
    reading = read(body)
    assert (reading.text, reading.tokens, reading.ended, reading.error) == ("one two three", 3, True, None)
    assert not read(body[: len(body) // 2]).ended


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"error": "model is busy"}', "model is busy"),
        ('{"type": "error", "error": {"type": "api_error", "message": "gone"}}', "api_error: gone"),
        ('{"error": {"code": "unavailable", "message": "later"}}', "unavailable: later"),
        ('{"error": {}}', None),
        ('{"error": ""}', None),
        ("[]", None),
        ("<html>", None),
    ],
)
def test_reasons_in_every_shape(body: str, reason: str | None) -> None:
    assert read_refusal(body.encode()) == reason


def test_a_seed_draws_the_same_faults_again() -> None:
    first, again, other = (list(islice(drawn(seed, COMPUTING), 50)) for seed in ("7", "7", "8"))
    assert first == again != other
    assert {fault.kind for fault in first} == set(COMPUTING)
