"""`mesh jobs crash`: what a person is shown of a failure that happened elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from tests.jobs_fake import EVENTS, FakeJobs
from typer.testing import CliRunner, Result

from tiermesh.cli.crash_view import EVENTS_SHOWN, LOG_SHOWN, crash_lines
from tiermesh.cli.main import app
from tiermesh.protocol.jobs import CrashReport
from tiermesh.protocol.training_events import Failed

GIB = 1 << 30
CRASH = CrashReport(
    job="FAQ",
    attempt=2,
    node="gpu1",
    name="20261122T100000Z-7",
    report={
        "kind": "non_finite",
        "message": "too many steps were NaN",
        "at": 1_780_000_000.0,
        "memory": {"peak_bytes": 3 * GIB, "machine_bytes": 8 * GIB},
    },
    stack='Traceback (most recent call last):\n  File "loss.py", line 3, in loss\nNonFinite: too many steps were NaN\n',
    events=[event.model_dump(mode="json") for event in (EVENTS[1], Failed(kind="non_finite", message="NaN"))],
    log="loading\nready\n",
)


@pytest.fixture
def desk() -> Iterator[FakeJobs]:
    with FakeJobs() as fake:
        fake.has("faq", "failed", failure="non_finite")
        yield fake


@pytest.fixture
def mesh(desk: FakeJobs) -> Callable[..., Result]:
    return lambda *given: CliRunner().invoke(app, ["jobs", "crash", *given], env={"MESH_URL": desk.url})


def test_what_happened_then_where_then_what_went_before(desk: FakeJobs, mesh: Callable[..., Result]) -> None:
    desk.desk.crash = CRASH
    found = mesh("faq")
    assert found.exit_code == 0, found.output
    lines = found.output.splitlines()
    assert lines[:2] == ["attempt     2, on gpu1", "failure     non_finite: too many steps were NaN"]
    assert any(line.startswith("memory      3.2 GB at most of the machine's 8.6 GB") for line in lines)
    stack, events, log = (lines.index(title) for title in ("stack", "last events", "log"))
    assert lines[stack + 3] == "  NonFinite: too many steps were NaN"
    assert "step 1/2  loss 2.5000" in lines[events + 1]
    assert lines[events + 2].endswith("failed: non_finite: NaN")
    assert lines[log + 1 :] == ["  loading", "  ready"]


def test_programs_get_all_of_it(desk: FakeJobs, mesh: Callable[..., Result]) -> None:
    desk.desk.crash = CRASH
    assert CrashReport.model_validate(json.loads(mesh("faq", "--attempt", "2", "--json").output)) == CRASH


def test_where_there_is_none_it_is_said(mesh: Callable[..., Result]) -> None:
    found = mesh("faq")
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr == "mesh: there is no crash report of job faq: no attempt left one\n"


def test_what_is_missing_or_strange_is_passed_over() -> None:
    strange = {"kind": 3, "at": "noon", "memory": [1]}
    bare = CrashReport(job="FAQ", attempt=1, node="gpu1", name="x", report=strange, events=[{"event": "of tomorrow"}])
    assert crash_lines(bare) == [
        "attempt     1, on gpu1",
        "failure     3",
        "kept in     crash/x of the attempt's folder",
    ]


def test_of_much_the_last_is_shown() -> None:
    many = CRASH.model_copy(update={"events": CRASH.events * 100, "log": "".join(f"line {n}\n" for n in range(1000))})
    lines = crash_lines(many)
    assert lines.index("log") - lines.index("last events") == EVENTS_SHOWN + 2
    assert lines[-LOG_SHOWN:] == [f"  line {n}" for n in range(1000 - LOG_SHOWN, 1000)]
