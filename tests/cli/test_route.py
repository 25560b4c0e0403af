"""`mesh route`: who would answer, best first, and why."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.cli.conftest import Mesh
from tests.mesh_fake import FakeMesh


def candidate(name: str, score: float | None, reason: str) -> dict[str, Any]:
    facts = {"node_id": name, "digest": "d", "engine": "e", "tier": 1, "state": "warm", "active": 0, "slots": 4}
    return {"node": name, "model": "m", "score": score, "reason": reason, **facts}


def complexity(*, used: bool) -> dict[str, Any]:
    signals = {"length": 0.2, "keywords": 0.5, "context": 0.0, "code": 0.0, "question": 0.3}
    return {"score": 0.36, "tier": 1, "tokens": 14, "signals": signals, "used": used}


@pytest.fixture
def routed(fake: FakeMesh) -> FakeMesh:
    fake.route = {
        "model": "auto",
        "tier": 1,
        "complexity": complexity(used=True),
        "candidates": [candidate("near", 100.0, "tier 1, warm"), candidate("far", 77.78, "tier 1, cold")],
        "left_out": [candidate("ill", None, "breaker open, next try in 7 s")],
    }
    return fake


def test_a_table_says_who_and_why_and_a_line_what_was_wanted(routed: FakeMesh, mesh: Mesh) -> None:
    done = mesh("route", "Explain bees")
    assert (done.exit_code, done.stderr) == (0, "")
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[0] == (
        "auto: tier 1, by the prompt's complexity, 0.36 of about 14 tokens: length 0.20, keywords 0.50, question 0.30"
    )
    rows = [line.split(None, 4) for line in lines if line.strip().startswith(("1 ", "2 "))]
    assert rows == [["1", "near", "m", "100.0", "tier 1, warm"], ["2", "far", "m", "77.8", "tier 1, cold"]]
    assert lines[lines.index("left out:") + 2 :][-1].split(None, 3) == [
        "ill",
        "m",
        "–",
        "breaker open, next try in 7 s",
    ]
    assert routed.bodies("/api/route") == [{"messages": [{"role": "user", "content": "Explain bees"}]}]
    assert routed.bodies("/api/complete") == [], "nobody is asked"


def test_what_the_caller_asked_for_is_said(routed: FakeMesh, mesh: Mesh) -> None:
    routed.route |= {"model": "tier:1", "complexity": complexity(used=False)}
    done = mesh("route", "-", "--model", "tier:1", "--tier", "0", stdin="Explain bees")
    assert done.stdout.startswith("tier:1: tier 1, as asked (complexity 0.36 of about 14 tokens: ")
    assert "not used)" in done.stdout.splitlines()[0]
    (body,) = routed.bodies("/api/route")
    assert body | {"messages": []} == {"messages": [], "model": "tier:1", "tier": 0}


def test_json_is_the_whole_report(routed: FakeMesh, mesh: Mesh) -> None:
    report = json.loads(mesh("route", "x", "--json").stdout)
    assert [one["node"] for one in report["candidates"]] == ["near", "far"]
    assert report["complexity"]["signals"]["keywords"] == 0.5


def test_nobody_to_ask_fails_and_shows_who_is_left_out(routed: FakeMesh, mesh: Mesh) -> None:
    routed.route |= {"candidates": [], "refusal": {"message": "ill is given a rest", "retry_after_s": 7}}
    done = mesh("route", "x")
    assert (done.exit_code, done.stderr) == (1, "mesh: ill is given a rest\n")
    assert "left out:" in done.stdout
    assert json.loads(mesh("route", "x", "--json").stdout)["refusal"]["retry_after_s"] == 7


def test_an_empty_question_is_wrong_use(routed: FakeMesh, mesh: Mesh) -> None:
    assert mesh("route", " ").exit_code == 2
    assert routed.bodies("/api/route") == []
