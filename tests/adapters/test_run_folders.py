"""Folders of runs: what is heavy goes, what a run came to stays, and nothing is touched while a worker is at it."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from tiermesh.adapters.run_folders import RunFolders
from tiermesh.protocol.run_folder import RunFolder
from tiermesh.protocol.ulid import make_ulid

JOB = make_ulid(1_800_000_000_000, b"0123456789")
OTHER = make_ulid(1_800_000_000_000, b"9876543210")


def make_run(folder: Path, job: str, attempt: int) -> RunFolder:
    run = RunFolder(folder / job / f"attempt-{attempt}")
    for name in ("checkpoints/step-00000004", "input-data", "input-eval_data", "result", "tensorboard", "crash/1"):
        (run.path / name).mkdir(parents=True)
        (run.path / name / "file").write_text(name)
    for path in (run.events, run.log, run.plan, run.lock):
        path.write_text("said")
    return run


@pytest.fixture
def folders(tmp_path: Path) -> RunFolders:
    return RunFolders(tmp_path / "jobs")


def test_what_a_run_needed_to_go_on_goes_and_what_it_came_to_stays(tmp_path: Path, folders: RunFolders) -> None:
    runs = [make_run(tmp_path / "jobs", JOB, attempt) for attempt in (1, 2)]
    other = make_run(tmp_path / "jobs", OTHER, 1)
    assert (sorted(folders.jobs()), folders.is_heavy(JOB)) == (sorted([JOB, OTHER]), True)
    assert folders.lighten(JOB)
    for run in runs:
        there = sorted(path.name for path in run.path.iterdir())
        assert there == ["crash", "events.jsonl", "lock", "result", "spec.json", "tensorboard", "worker.log"]
    assert (folders.is_heavy(JOB), (other.checkpoints / "step-00000004").is_dir()) == (False, True)
    assert folders.lighten(JOB)
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == sorted([JOB, OTHER])


def test_all_of_a_job_goes(tmp_path: Path, folders: RunFolders) -> None:
    make_run(tmp_path / "jobs", JOB, 1)
    make_run(tmp_path / "jobs", OTHER, 1)
    assert folders.remove(JOB)
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == [OTHER]
    assert folders.remove(JOB)


def test_a_link_elsewhere_keeps_its_file(tmp_path: Path, folders: RunFolders) -> None:
    run = make_run(tmp_path / "jobs", JOB, 1)
    (tmp_path / "kept").hardlink_to(run.result / "file")
    folders.remove(JOB)
    assert (tmp_path / "kept").read_text() == "result"


def test_nothing_is_touched_while_a_worker_is_at_it(tmp_path: Path, folders: RunFolders) -> None:
    make_run(tmp_path / "jobs", JOB, 1)
    run = make_run(tmp_path / "jobs", JOB, 2)
    with run.lock.open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert (folders.lighten(JOB), folders.remove(JOB)) == (False, False)
        assert folders.is_heavy(JOB)
    assert folders.lighten(JOB)


def test_what_a_dead_daemon_was_at_work_with_goes_at_the_next_start(tmp_path: Path, folders: RunFolders) -> None:
    make_run(tmp_path / "jobs", JOB, 1)
    for name in ("look-0123456789abcdef", "estimate-0123456789abcdef", ".gone-0123"):
        (tmp_path / "jobs" / name / "data").mkdir(parents=True)
        (tmp_path / "jobs" / name / "data" / "rows").write_text("rows")
    folders.open()
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == [JOB]
    RunFolders(tmp_path / "nowhere").open()


def test_only_jobs_are_jobs(tmp_path: Path, folders: RunFolders) -> None:
    for name in ("look-1", "notes", JOB):
        (tmp_path / "jobs" / name).mkdir(parents=True)
    assert folders.jobs() == [JOB]
    assert RunFolders(tmp_path / "nowhere").jobs() == []
