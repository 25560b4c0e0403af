"""A failure leaves what somebody needs who was not there; and nothing secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiermesh.adapters.crash_reports import newest_crash
from tiermesh.errors import OutOfMemory
from tiermesh.kernel.training.crash import KEPT, LAST_LINES, write_report
from tiermesh.protocol.run_folder import RunFolder


def raised() -> RuntimeError:
    try:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    except RuntimeError as error:
        return error


def test_the_report_has_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    folder = RunFolder(tmp_path)
    folder.events.write_text("".join(f'{{"line": {line}}}\n' for line in range(1000)))
    folder.log.write_text("all is well\n")
    folder.plan.write_text("{}")
    name = write_report(folder, raised(), OutOfMemory("out of memory"))
    assert name is not None
    place = folder.crash / name
    report = json.loads((place / "report.json").read_text())
    assert (report["kind"], report["message"]) == ("out_of_memory", "out of memory")
    assert report["memory"]["resident_bytes"] > 0
    assert report["memory"]["available_bytes"] > 0
    assert report["machine"]["versions"]["torch"]
    assert report["machine"]["environment"]["OMP_NUM_THREADS"] == "2"
    assert "hf_secret" not in (place / "report.json").read_text()
    stack = (place / "stack.txt").read_text()
    assert "in raised" in stack
    assert "Current thread" in stack
    lines = (place / "events.jsonl").read_text().splitlines()
    assert len(lines) == LAST_LINES
    assert lines[-1] == '{"line": 999}'
    assert (place / "worker.log").read_text() == "all is well\n"
    assert (place / "spec.json").read_text() == "{}"


def test_what_others_are_told_of_it_is_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "wandb_secret")
    folder = RunFolder(tmp_path)
    name = write_report(folder, raised(), OutOfMemory("out of memory"))
    found = newest_crash(folder)
    assert found is not None
    assert (found.name, found.report["kind"], "in raised" in found.stack) == (name, "out_of_memory", True)
    assert "wandb_secret" not in found.model_dump_json()


def test_only_the_last_ones_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, names = RunFolder(tmp_path), []
    for number in range(KEPT + 2):
        monkeypatch.setattr("time.strftime", lambda *_, number=number: f"2026{number}")
        names.append(write_report(folder, raised(), OutOfMemory("x")))
    assert sorted(path.name for path in folder.crash.iterdir()) == names[-KEPT:]


def test_a_report_that_can_not_be_written_is_no_second_failure(tmp_path: Path) -> None:
    (tmp_path / "crash").write_text("in the way")
    assert write_report(RunFolder(tmp_path), raised(), OutOfMemory("x")) is None
