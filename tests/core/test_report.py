"""What is told of a job, as a page and as data."""

from __future__ import annotations

import json

import pytest

from tiermesh.core.report import (
    TABLE_POINTS,
    TIMELINE_LIMIT,
    Curve,
    Moment,
    Range,
    Report,
    Summary,
    Tried,
    as_json,
    as_markdown,
)

SUMMARY = Summary(
    model="smollm2:135m",
    method="lora",
    status="completed",
    estimated_usd=Range(value=0.02, low=0.01, high=0.04),
    actual_usd=0.031,
    estimated_memory=Range(value=2 << 30, low=1 << 30, high=3 << 30),
    actual_memory=(5 << 30) // 2,
    estimated_seconds=Range(value=50.0, low=40.0, high=90.0),
    actual_seconds=61.0,
    final_loss=1.25,
    held_out_loss=1.5,
    held_out_loss_before=4.0,
    served_on=("desk", "gpu1"),
)
REPORT = Report(
    run_id="01J",
    name="faq",
    written_at=1_800_000_000.0,
    summary=SUMMARY,
    spec={"method": "lora", "num_epochs": 3},
    gate="approve: at most 0.04 USD, under the soft limit",
    timeline=(Moment(at=1_799_999_000.0, phase="submitted", text="by anna"),),
    attempts=(
        Tried(number=1, node="gpu1", state="lost", cause="first", reason="the node is down", step=7, steps=20),
        Tried(number=2, node="desk", state="completed", cause="moved", why="gpu1 is down", seconds=61.0),
    ),
    curve=Curve(losses=((1, 4.0), (2, 2.0), (3, 1.25)), held_out=((3, 1.5),)),
)


def test_the_summary_says_what_was_expected_and_what_came() -> None:
    page = as_markdown(REPORT)
    for line in (
        "# Job faq",
        "- **Run id**: 01J",
        "- **Written**: 2027-01-15 08:00:00 UTC",
        "- **Status**: completed",
        "- **Cost**: estimated 0.02 USD (0.01 USD to 0.04 USD), actual 0.031 USD",
        "- **Memory**: estimated 2.0 GiB (1.0 GiB to 3.0 GiB), actual 2.5 GiB",
        "- **Duration**: estimated 50.0 s (40.0 s to 1 min 30 s), actual 1 min 1 s",
        "- **Held-out loss**: 1.5 (before: 4)",
        "- **Served on**: desk, gpu1",
        "approve: at most 0.04 USD, under the soft limit",
        "| 2 | desk | unknown | moved: gpu1 is down | completed | none | 1 min 1 s |  |",
        "Every gate was passed.",
        '  "num_epochs": 3',
    ):
        assert line in page.splitlines()


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    page = as_markdown(
        Report(run_id="01J", name="j", written_at=0, summary=Summary(model="m", method="lora", status="queued"))
    )
    assert "- **Cost**: estimated unknown, actual unknown" in page
    assert "- **Memory**: estimated unknown, actual unknown" in page
    for said in ("No decision was made yet.", "None was made.", "Nothing was evaluated.", "No step was made."):
        assert said in page
    assert "None" not in page.replace("None was made.", "")


def test_failed_gates_are_named() -> None:
    failed = as_markdown(_with(evaluation_failures=("final loss 3.1 is above 2.0", "canary 2 refuses")))
    assert "- failed: final loss 3.1 is above 2.0\n- failed: canary 2 refuses" in failed
    assert "Every gate was passed." not in failed


def test_without_a_picture_there_is_a_table_that_says_why() -> None:
    page = as_markdown(_with(no_picture="matplotlib is not installed"))
    assert "There is no picture: matplotlib is not installed" in page
    assert "| 3 | 1.25 | 1.5 |" in page
    assert "![loss by step](report.png)" in as_markdown(_with(picture="report.png"))
    assert "| 3 | 1.25 | 1.5 |" not in as_markdown(_with(picture="report.png"))


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    losses = tuple((step, 1 / step) for step in range(1, 1001))
    rows = [
        line
        for line in as_markdown(
            _with(timeline=(), curve=Curve(losses=losses, held_out=((0, 7.0), (500, 0.5))))
        ).splitlines()
        if line.startswith("| ") and line[2].isdigit() and line.count("|") == 4
    ]
    assert rows[:2] == ["| 0 |  | 7 |", "| 1 | 1 |  |"]
    assert rows[-1].startswith("| 1000 |")
    assert "| 500 | 0.002 | 0.5 |" in rows
    assert len(rows) == TABLE_POINTS + 2


def test_a_long_timeline_keeps_beginning_and_end() -> None:
    moments = tuple(Moment(at=float(n), phase="step", text=f"number {n}") for n in range(TIMELINE_LIMIT + 50))
    page = as_markdown(_with(timeline=moments))
    assert "50 more" in page
    assert "number 0 |" in page
    assert f"number {TIMELINE_LIMIT + 49} |" in page
    assert page.count("number ") == TIMELINE_LIMIT
    assert len(as_json(_with(timeline=moments))["timeline"]) == len(moments)


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a|b\nc", "![x](http://x)", "`code`", "*bold*", "a\\|b"])
def test_texts_from_elsewhere_are_no_markup(text: str) -> None:
    report = _with(name=text, gate=text, timeline=(Moment(at=0, phase="told", text=text),))
    page = as_markdown(report)
    assert f"<{text[1:]}" not in page.replace("\\<", "")
    for line in page.splitlines():
        if line.startswith("| 1970"):
            unescaped = line.replace("\\\\", "").replace("\\|", "")
            assert unescaped.count("|") == 4, line
        assert "![x](" not in line.replace("\\!", "").replace("\\[", "")
    assert as_json(report)["name"] == text


def test_a_spec_with_fences_stays_in_its_own() -> None:
    page = as_markdown(_with(spec={"samples": ["```\n# not a heading\n````"]}))
    assert page.rstrip().endswith("`````")


def test_names_with_underscores_are_left_alone() -> None:
    assert "# Job job_20261122_101010" in as_markdown(_with(name="job_20261122_101010"))


def test_the_data_is_json() -> None:
    told = json.loads(json.dumps(as_json(REPORT)))
    assert told["summary"]["estimated_usd"] == {"value": 0.02, "low": 0.01, "high": 0.04}
    assert told["attempts"][0]["state"] == "lost"
    assert told["curve"]["losses"] == [[1, 4.0], [2, 2.0], [3, 1.25]]


def _with(**changed: object) -> Report:
    from dataclasses import replace

    return replace(REPORT, **changed)  # type: ignore[arg-type]
