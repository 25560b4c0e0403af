"""`mesh train` with the real worker on a tiny model: from a spec to an adapter, over interruptions."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from safetensors import safe_open
from tests.tiny_model import build_folder
from tests.training_runs import write_data, write_spec

DEADLINE_S = 110.0
ORPHAN_LIMIT_S = 5.0
FIELDS = {
    "model_name": "../model",
    "dataset_path": "data.jsonl",
    "seq_len": 64,
    "num_epochs": 2,
    "learning_rate": 5e-3,
    "precision": "fp32",
    "eval_fraction": 0.1,
    "save_interval": 4,
    "samples": ["what comes after 3?"],
    "sample_tokens": 4,
    "lora": {"r": 4},
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the model, once for all."""
    folder = tmp_path_factory.mktemp("shelf")
    build_folder(folder / "model")
    return folder


@pytest.fixture
def desk(shelf: Path, request: pytest.FixtureRequest) -> Path:
    """A folder beside the model's, with data and a spec."""
    folder = shelf / str(request.node.name)
    folder.mkdir()
    write_data(folder / "data.jsonl", 200)
    write_spec(folder / "spec.json", **FIELDS)
    return folder


def start(desk: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tiermesh.cli.main", "train", *arguments],
        cwd=desk,
        env={**os.environ, "TIERMESH_CACHE": str(desk / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def mesh(desk: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(desk, *arguments)
    out, said = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, said


def events(desk: Path, run: str = "runs/spec") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (desk / run / "events.jsonl").read_text().splitlines()]


def losses(desk: Path, run: str) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in events(desk, run) if event["event"] == "step"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_from_a_spec_to_an_adapter_that_is_better(desk: Path) -> None:
    code, out, said = mesh(desk, "run", "spec.json", "--local")
    assert (code, said) == (0, ""), out + said
    completed = events(desk)[-1]
    assert completed["event"] == "completed"
    assert completed["held_out_loss"] < completed["held_out_loss_before"]
    with safe_open(desk / "runs" / "spec" / "result" / "adapter_model.safetensors", "pt") as adapter:
        assert any("lora_A" in name for name in adapter.keys())  # noqa: SIM118 - no mapping
    card = (desk / "runs" / "spec" / "result" / "README.md").read_text()
    assert "data.jsonl" in card

    code, out, said = mesh(desk, "eval", "runs/spec", "--json")
    assert (code, said) == (0, "")
    found = json.loads(out)
    assert found["loss"] == pytest.approx(completed["held_out_loss"], abs=1e-4)
    assert found["samples"][0]["prompt"] == "what comes after 3?"

    code, out, said = mesh(desk, "eval", "runs/spec", "--best", "--json")
    assert (code, said) == (0, "")
    evaluated = [event for event in events(desk) if event["event"] == "evaluated" and event["step"] > 0]
    best = min(evaluated, key=lambda event: event["loss"])
    found = json.loads(out)
    assert found["step"] == best["step"]
    assert found["loss"] == pytest.approx(best["loss"], abs=1e-4)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_stopped_by_ctrl_c_it_goes_on_as_if_it_never_was(desk: Path) -> None:
    assert mesh(desk, "run", "spec.json", "--local", "--out", "whole")[0] == 0
    write_spec(desk / "spec.json", **FIELDS | {"save_interval": 1000})
    process = start(desk, "run", "spec.json", "--local", "--out", "parts")
    wait_for_step(desk / "parts" / "events.jsonl", 3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, "to go on: mesh train run --local --out" in said) == (130, True)
    assert events(desk, "parts")[-1]["event"] == "stopped"
    code, out, said = mesh(desk, "run", "--local", "--out", "parts")
    assert (code, said) == (0, ""), out + said
    assert "going on after step" in out
    assert losses(desk, "parts") == losses(desk, "whole")


def test_data_that_can_not_be_used_is_one_line(desk: Path) -> None:
    lines = (desk / "data.jsonl").read_text().splitlines()
    (desk / "data.jsonl").write_text("\n".join([*lines, "no json", '{"other": 1}']))
    arguments = ("spec.json", "--set", "data.max_bad_records=1")
    code, out, said = mesh(desk, "run", *arguments, "--local")
    assert (code, out, said.count("\n")) == (2, "", 1)
    assert said.startswith(f"mesh: data.max_bad_records is 1, but 2 records of {desk / 'data.jsonl'} are bad; ")
    assert "line 201 is not JSON" in said
    assert "line 202 has no text" in said
    assert not (desk / "runs").exists()

    code, out, said = mesh(desk, "validate", *arguments)
    assert (code, said) == (1, "")
    told = out.splitlines()
    assert told[0] == f"data.max_bad_records is 1, but 2 records of {desk / 'data.jsonl'} are bad"
    assert [line.partition(" is ")[0].partition(" has ")[0] for line in told[1:]] == ["line 201", "line 202"]


@pytest.mark.alone
def test_a_worker_does_not_outlive_its_terminal(desk: Path) -> None:
    write_spec(desk / "spec.json", **FIELDS | {"num_epochs": 500, "save_interval": 1000})
    process = start(desk, "run", "spec.json", "--local")
    wait_for_step(desk / "runs" / "spec" / "events.jsonl", 3)
    pid = next(event["pid"] for event in events(desk) if event["event"] == "started")
    process.kill()
    process.communicate(timeout=DEADLINE_S)
    wait_for_end(pid, desk / "runs" / "spec" / "lock")
    assert events(desk)[-1]["event"] == "stopped"
    newest = (desk / "runs" / "spec" / "checkpoints" / "latest").read_text().strip()
    assert newest == events(desk)[-1]["checkpoint"]


def test_an_estimate_writes_nothing_here(desk: Path) -> None:
    before = sorted(desk.glob("*"))
    code, out, said = mesh(desk, "estimate", "spec.json", "--json")
    assert (code, said) == (0, "")
    found = json.loads(out)
    assert found["total_bytes"] > found["weights_bytes"] > 0
    assert found["seconds_low"] <= found["seconds"] <= found["seconds_high"]
    assert set(desk.glob("*")) - set(before) <= {desk / "cache"}


def wait_for_end(pid: int, lock: Path) -> None:
    """Of a process that is not our child, and of all that it started: until nobody holds the run."""
    deadline = time.monotonic() + ORPHAN_LIMIT_S
    with lock.open() as file:
        while psutil.pid_exists(pid) or not _is_free(file):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def _is_free(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_step(path: Path, step: int) -> None:
    wait_for_line(path, f'"event":"step","step":{step},')


def wait_for_line(path: Path, part: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not (path.exists() and part in path.read_text()):
        assert time.monotonic() < deadline, path.read_text() if path.exists() else path
        time.sleep(0.01)


def test_a_run_says_what_it_leaves_out_and_its_result_is_there(desk: Path) -> None:
    with (desk / "data.jsonl").open("a") as file:
        file.write("no json\n")
    options = ("--max-steps", "1", "--merge", "--set", "samples=[]")
    code, out, said = mesh(desk, "run", "spec.json", "--local", *options)
    assert (code, said) == (0, ""), out + said
    assert "left out: line 201 is not JSON" in out
    assert next(event for event in events(desk) if event["event"] == "data")["bad"][0].startswith("line 201 is not")
    assert "left out: line 201 is not JSON" in (desk / "runs" / "spec" / "worker.log").read_text()
    assert (desk / "runs" / "spec" / "result" / "model.safetensors").exists()


def test_a_paused_run_does_nothing_until_it_may_go_on(desk: Path) -> None:
    write_spec(desk / "spec.json", **FIELDS | {"num_epochs": 500, "save_interval": 1000, "samples": []})
    process = start(desk, "run", "spec.json", "--local")
    told = desk / "runs" / "spec" / "events.jsonl"
    try:
        wait_for_step(told, 3)
        code, out, said = mesh(desk, "pause", "runs/spec")
        assert (code, "`mesh train resume runs/spec` lets it go on" in out, said) == (0, True, "")
        wait_for_line(told, '"event":"paused"')
        assert mesh(desk, "pause", "runs/spec")[:2] == (0, "it is paused already\n")
        assert events(desk)[-1]["event"] == "paused"
        assert mesh(desk, "resume", "runs/spec") == (0, "it goes on\n", "")
        wait_for_step(told, events(desk)[-1]["step"] + 2)
        assert [event["event"] for event in events(desk)].count("continued") == 1
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
