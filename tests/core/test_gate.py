"""The gate: its upper end decides, at or under soft goes through, over max never does, between waits for a person."""

from __future__ import annotations

import pytest

from tiermesh.core.gate import Budget, Decision, decide, dollars

USUAL = Budget()
ASKING = Budget(allow_auto_approve=False)
CAREFUL = Budget(unknown="wait")
NOTHING = Budget(max_usd=0.0, soft_usd=0.0)

ROWS = [
    ("nothing", 0.0, USUAL, False, None, "approve"),
    ("under soft", 1.99, USUAL, False, None, "approve"),
    ("at soft", 2.0, USUAL, False, None, "approve"),
    ("over soft", 2.01, USUAL, False, None, "wait"),
    ("at max", 5.0, USUAL, False, None, "wait"),
    ("over max", 5.01, USUAL, False, None, "refuse"),
    ("over max, approved: nobody can", 5.01, USUAL, True, None, "refuse"),
    ("between, approved beforehand", 4.0, USUAL, True, None, "approve"),
    ("auto-approval off, under soft", 0.01, ASKING, False, None, "wait"),
    ("auto-approval off, free", 0.0, ASKING, False, None, "wait"),
    ("auto-approval off, approved beforehand", 0.01, ASKING, True, None, "wait"),
    ("auto-approval off, over max", 9.0, ASKING, False, None, "refuse"),
    ("auto-approval off, unknown", None, ASKING, True, None, "wait"),
    ("unknown", None, USUAL, False, None, "approve"),
    ("unknown, by policy", None, CAREFUL, False, None, "wait"),
    ("unknown, by policy, approved beforehand", None, CAREFUL, True, None, "approve"),
    ("own limit kept", 1.0, USUAL, False, 1.5, "approve"),
    ("own limit at its end", 1.5, USUAL, False, 1.5, "approve"),
    ("own limit passed", 1.6, USUAL, False, 1.5, "refuse"),
    ("own limit passed, approved", 1.6, USUAL, True, 1.5, "refuse"),
    ("own limit is above soft", 3.0, USUAL, False, 4.0, "wait"),
    ("own limit is above max", 6.0, USUAL, True, 9.0, "refuse"),
    ("own limit, unknown", None, USUAL, True, 1.5, "wait"),
    ("no money, free", 0.0, NOTHING, False, None, "approve"),
    ("no money, a cent", 0.01, NOTHING, True, None, "refuse"),
]


@pytest.mark.parametrize(
    ("usd_high", "budget", "approved", "max_usd", "verdict"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_gate(usd_high: float | None, budget: Budget, approved: bool, max_usd: float | None, verdict: str) -> None:
    decision = decide(usd_high, budget, approved=approved, max_usd=max_usd)
    assert decision.verdict == verdict
    assert decision.reason.startswith(
        "what it costs is unknown" if usd_high is None else f"it may cost ${usd_high:.2f}"
    )


def test_defaults_are_those_of_the_workflow() -> None:
    assert Budget(max_usd=5.0, soft_usd=2.0, allow_auto_approve=True, unknown="approve") == USUAL


def test_the_reason_names_the_limit() -> None:
    assert decide(7.0, USUAL) == Decision("refuse", "it may cost $7.00, and the budget of a job is $5.00")
    assert decide(3.0, USUAL) == Decision("wait", "it may cost $3.00; over $2.00 a person approves")


@pytest.mark.parametrize(
    ("usd", "text"), [(0.0, "$0.00"), (0.01, "$0.01"), (12.345, "$12.35"), (0.000123, "$0.00012"), (0.0099, "$0.0099")]
)
def test_dollars(usd: float, text: str) -> None:
    assert dollars(usd) == text
