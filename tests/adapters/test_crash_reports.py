"""A run's newest failure, read for somebody elsewhere: each part whole or cut, and none of them an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiermesh.adapters import crash_reports
from tiermesh.adapters.crash_reports import newest_crash
from tiermesh.adapters.death_report import Death, write_death_report
from tiermesh.protocol.run_folder import RunFolder


def kept(folder: RunFolder, name: str, **parts: str) -> Path:
    place = folder.crash / name
    place.mkdir(parents=True)
    for part, text in parts.items():
        suffix = {"report": "json", "stack": "txt", "events": "jsonl", "worker": "log", "spec": "json"}[part]
        (place / f"{part}.{suffix}").write_text(text)
    return place


def test_nothing_is_kept_of_a_run_without_failure(tmp_path: Path) -> None:
    assert newest_crash(RunFolder(tmp_path)) is None
    (tmp_path / "crash").mkdir()
    assert newest_crash(RunFolder(tmp_path)) is None


def test_the_newest_is_told_without_its_spec(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    kept(folder, "20261122T100000Z-9", report='{"kind": "stalled"}')
    kept(
        folder,
        "20261122T110000Z-7",
        report='{"kind": "non_finite", "at": 5.0, "memory": {"gpu": NaN}}',
        stack="Traceback\nValueError: no\n",
        events='{"event": "step", "loss": NaN}\nhalf a l',
        worker="one\ntwo\n",
        spec='{"model_path": "/elsewhere"}',
    )
    found = newest_crash(folder)
    assert found is not None
    assert found.model_dump() == {
        "name": "20261122T110000Z-7",
        "report": {"kind": "non_finite", "at": 5.0, "memory": {"gpu": None}},
        "stack": "Traceback\nValueError: no\n",
        "events": [{"event": "step", "loss": None}],
        "log": "one\ntwo\n",
    }
    assert json.loads(found.model_dump_json()) == found.model_dump()


def test_of_a_worker_that_was_killed_the_log_is_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log.write_text("Fatal Python error: Segmentation fault\n")
    death = Death(
        kind="crashed",
        message="signal 11",
        pid=7,
        returncode=-11,
        peak_bytes=5,
        memory_share=None,
        system_kills=None,
    )
    name = write_death_report(folder, death)
    found = newest_crash(folder)
    assert found is not None
    assert (found.name, found.report["message"], found.stack) == (name, "signal 11", "")
    assert found.log == "Fatal Python error: Segmentation fault\n"


@pytest.mark.parametrize("report", ["", "[]", "{", "{" * 100_000, '{"kind": "' + "x" * 400_000 + '"}'])
def test_a_report_that_can_not_be_read_is_empty(tmp_path: Path, report: str) -> None:
    kept(RunFolder(tmp_path), "20261122T100000Z-9", report=report, stack="Traceback\n")
    found = newest_crash(RunFolder(tmp_path))
    assert found is not None
    assert (found.report, found.stack) == ({}, "Traceback\n")


def test_no_part_is_longer_than_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in (("STACK_BYTES", 40), ("EVENTS_BYTES", 50), ("LOG_BYTES", 10)):
        monkeypatch.setattr(crash_reports, name, limit)
    kept(
        RunFolder(tmp_path),
        "20261122T100000Z-9",
        stack="a" * 20 + "b" * 1000 + "c" * 20,
        events="".join(f'{{"event": "e", "step": {step}}}\n' for step in range(10, 99)),
        worker="first\nsecond\nlast\n",
    )
    found = newest_crash(RunFolder(tmp_path))
    assert found is not None
    assert found.stack == "a" * 20 + "\n... 1,000 bytes left out ...\n" + "c" * 20
    assert found.events == [{"event": "e", "step": 98}]
    assert found.log == "last\n"
