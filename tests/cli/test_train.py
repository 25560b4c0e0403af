"""`mesh train` with a scripted worker: what is started, shown, and said at the end."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Mesh
from tests.training_fake import PROGRAM, starts, write_script
from tests.training_runs import write_data, write_model_stub, write_spec

from tiermesh.adapters.trainer import Launch
from tiermesh.protocol.run_folder import RunFolder

DEADLINE_S = 60.0
STARTED = {"event": "phase", "phase": "train", "state": "started"}
STEP = {
    "event": "step",
    "step": 9,
    "steps": 9,
    "epoch": 1.0,
    "loss": 1.25,
    "learning_rate": 1e-4,
    "tokens_per_s": 312.4,
    "memory_bytes": 1_400_000_000,
    "eta_s": 0.0,
}
COMPLETED = {
    "event": "completed",
    "step": 9,
    "result": "the/result",
    "held_out_loss": 1.0,
    "held_out_loss_before": 2.0,
    "seconds": 61.0,
    "tokens": 4608,
}
FAILED = {"event": "failed", "kind": "bad_data", "message": "12 records are bad", "advice": "mend them"}
REFUSED = {"event": "failed", "kind": "checkpoint_unusable", "message": "this run can't go on as another one"}
STOPPED = {"event": "stopped", "step": 7}


@pytest.fixture
def desk(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a spec, and a scripted worker in place of the real one."""
    write_model_stub(home / "model")
    write_data(home / "data.jsonl")
    write_spec(home / "spec.json", model_name="model", dataset_path="data.jsonl")
    defaults = Launch.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "program", PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return home


def play(folder: Path, *lines: list[dict[str, Any]]) -> Path:
    """Set up a run that was begun with the defaults, whose next worker plays `lines`."""
    write_script(folder, *lines)
    return folder


def begin(mesh: Mesh, desk: Path, *lines: list[dict[str, Any]]) -> Path:
    """A run in `runs/spec` that has begun, and was stopped."""
    folder = desk / "runs" / "spec"
    assert mesh("train", "run", "spec.json", "--local").exit_code == 1  # without a script the worker can't run
    (folder / "started").unlink(missing_ok=True)
    return play(folder, *lines)


def test_a_run_is_shown_as_lines(alone: Mesh, desk: Path) -> None:
    folder = begin(alone, desk, [{"say": STARTED}, {"say": STEP}, {"say": COMPLETED}])
    done = alone("train", "run", "spec.json", "--local", "--threads", "1")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "training",
        "step 9/9  loss 1.2500  lr 1.0e-04  312 tokens/s  1.4 GB  0 s left",
        "done: 9 steps in 61 s, 4,608 tokens",
        "held-out loss: 1.0000, 2.0000 before",
        "result: the/result",
    ]
    assert starts(folder) == [["--threads", "1"]]


def test_bad_records_are_named_and_counted(alone: Mesh, desk: Path) -> None:
    bad = [f"line {line} is not JSON" for line in range(3, 11)]
    ready = {"event": "data", "records": 90, "bad_records": 25, "tokens": 900, "rows": 9, "bad": bad, "cached": True}
    begin(alone, desk, [{"say": ready}, {"say": COMPLETED}])
    shown = alone("train", "run", "spec.json", "--local").stdout.splitlines()[:7]
    assert shown == [
        "data: 90 records, 900 tokens in 9 rows, 25 bad ones left out (its tokens were there already)",
        *(f"left out: {named}" for named in bad[:5]),
        "left out: 20 more",
    ]


def test_the_plan_has_absolute_paths_and_digests(alone: Mesh, desk: Path) -> None:
    folder = begin(alone, desk, [{"say": COMPLETED}])
    plan = RunFolder(folder).read_plan()
    assert plan.spec.dataset_path == plan.data_path == str(desk / "data.jsonl")
    assert plan.model_path == str(desk / "model")
    assert plan.data_digest.startswith("sha256:")
    assert plan.model_digest


def test_json_is_the_events(alone: Mesh, desk: Path) -> None:
    begin(alone, desk, [{"say": STEP}, {"say": COMPLETED}])
    told = alone("train", "run", "spec.json", "--local", "--json").stdout.splitlines()
    assert [json.loads(line)["event"] for line in told] == ["step", "completed"]


def test_a_typed_failure_is_one_line(alone: Mesh, desk: Path) -> None:
    begin(alone, desk, [{"say": FAILED}, {"exit": 3}])
    done = alone("train", "run", "spec.json", "--local")
    assert (done.exit_code, done.stderr) == (1, "mesh: bad_data: 12 records are bad. mend them\n")


def test_a_crash_names_the_log(alone: Mesh, desk: Path) -> None:
    folder = begin(alone, desk, [{"print": "double free"}, {"signal": 6}])
    done = alone("train", "run", "spec.json", "--local")
    assert done.stderr.startswith("mesh: the worker crashed (signal 6): double free")
    assert str(folder / "worker.log") in done.stderr


def test_a_run_goes_on_from_its_folder_alone(alone: Mesh, desk: Path) -> None:
    folder = begin(alone, desk, [{"say": COMPLETED}])
    before = RunFolder(folder).read_plan()
    assert alone("train", "run", "--local", "--out", str(folder)).exit_code == 0
    assert RunFolder(folder).read_plan() == before
    assert alone("train", "run", "--local", "--out", str(folder), "--set", "num_epochs=5").exit_code == 0
    assert RunFolder(folder).read_plan().spec.num_epochs == 5


def test_a_run_that_can_not_go_on_so_keeps_its_plan(alone: Mesh, desk: Path) -> None:
    folder = begin(alone, desk, [{"say": REFUSED}, {"exit": 3}])
    before = RunFolder(folder).read_plan()
    done = alone("train", "run", "spec.json", "--local", "--set", "lora.r=4")
    assert (done.exit_code, RunFolder(folder).read_plan()) == (1, before)


def test_fresh_never_overwrites(alone: Mesh, desk: Path) -> None:
    folder = begin(alone, desk, [{"say": COMPLETED}])
    done = alone("train", "run", "spec.json", "--local", "--fresh")
    assert (done.exit_code, starts(folder)) == (2, [])
    assert "holds a run; delete it, or take another --out" in done.stderr


def test_a_run_that_is_done_is_not_done_again(alone: Mesh, desk: Path) -> None:
    folder = begin(alone, desk)
    (folder / "events.jsonl").write_text(json.dumps(COMPLETED) + "\n")
    (folder / "result").mkdir()
    done = alone("train", "run", "spec.json", "--local")
    assert (done.exit_code, starts(folder)) == (0, [])
    assert f"its result is {folder / 'result'}" in done.stdout


def test_a_spec_by_options(alone: Mesh, desk: Path) -> None:
    arguments = ("--model", "model", "--data", "data.jsonl", "--method", "full_finetune", "--epochs", "2")
    alone("train", "run", "--local", *arguments, "--lr", "1e-5", "--set", "data.train_on=all")
    spec = RunFolder(desk / "runs" / "data-full_finetune").read_plan().spec
    assert (spec.method, spec.num_epochs, spec.learning_rate) == ("full_finetune", 2, 1e-5)
    assert spec.data.train_on == "all"


def test_options_win_over_the_file(alone: Mesh, desk: Path) -> None:
    write_spec(
        desk / "spec.json", model_name="model", dataset_path="data.jsonl", num_epochs=9, lora={"r": 4, "alpha": 8}
    )
    alone("train", "run", "spec.json", "--local", "--epochs", "2", "--set", "lora.r=2", "--set", "learning_rate=2e-4")
    spec = RunFolder(desk / "runs" / "spec").read_plan().spec
    assert (spec.num_epochs, spec.lora.r, spec.lora.alpha, spec.learning_rate) == (2, 2, 8, 2e-4)


def test_a_file_names_its_data_from_its_own_folder(alone: Mesh, desk: Path) -> None:
    (desk / "specs").mkdir()
    write_spec(desk / "specs" / "spec.json", model_name="model", dataset_path="../data.jsonl")
    alone("train", "run", "specs/spec.json", "--local")
    assert Path(RunFolder(desk / "runs" / "spec").read_plan().data_path).samefile(desk / "data.jsonl")


def test_without_local_a_node_is_asked_and_nothing_is_begun_here(alone: Mesh, desk: Path) -> None:
    done = alone("train", "run", "spec.json", "--url", "http://127.0.0.1:9")
    assert (done.exit_code, "no daemon answers at http://127.0.0.1:9" in done.stderr) == (1, True)
    assert not (desk / "runs").exists()


class Terminal:
    """A run as a person starts it, on a terminal or in a pipe."""

    def __init__(self, desk: Path, *, tty: bool) -> None:
        script = (
            "import sys; from tests.training_fake import PROGRAM; from tiermesh.adapters.trainer import Launch;"
            "Launch.__init__.__kwdefaults__['program'] = PROGRAM; from tiermesh.cli.main import main;"
            "sys.argv = ['mesh', 'train', 'run', 'spec.json', '--local']; main()"
        )
        ours, theirs = pty.openpty() if tty else os.pipe()
        self._output = ours
        self.process = subprocess.Popen(
            [sys.executable, "-c", script], cwd=desk, stdout=theirs, stderr=subprocess.PIPE, start_new_session=True
        )
        os.close(theirs)

    def read(self) -> str:
        """Up to its end."""
        said = b""
        while True:
            try:
                block = os.read(self._output, 65536)
            except OSError:  # how a terminal ends
                block = b""
            if not block:
                os.close(self._output)
                return said.decode()
            said += block

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, said.decode()


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM]])
def test_an_interrupt_stops_after_a_checkpoint(alone: Mesh, desk: Path, signals: list[signal.Signals]) -> None:
    folder = begin(alone, desk, [{"say": STEP}, {"until_told": True}, {"say": STOPPED}, {"exit": 75}])
    terminal = Terminal(desk, tty=False)
    wait_for(folder / "started")
    for number in signals:
        terminal.process.send_signal(number)
    code, said = terminal.end()
    assert "stopping after a checkpoint; once more ends it at once" in said
    assert (code, said.splitlines()[-1]) == (
        130,
        f"mesh: stopped after step 7; to go on: mesh train run --local --out {folder}",
    )
    assert "step 9/9" in terminal.read()


def test_a_second_interrupt_ends_it_at_once(alone: Mesh, desk: Path) -> None:
    folder = begin(alone, desk, [{"say": STEP}, {"until": "never"}])
    terminal = Terminal(desk, tty=False)
    wait_for(folder / "started")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.process.stderr is not None
    assert b"once more" in terminal.process.stderr.readline()
    terminal.process.send_signal(signal.SIGINT)
    code, said = terminal.end()
    assert (code, "ended before it could save; the checkpoint before is good" in said) == (130, True)
    terminal.read()


def test_on_a_terminal_there_is_a_bar(alone: Mesh, desk: Path) -> None:
    begin(alone, desk, [{"say": STARTED}, {"say": STEP}, {"say": COMPLETED}])
    terminal = Terminal(desk, tty=True)
    shown = terminal.read()
    assert terminal.end()[0] == 0
    assert "\x1b[" in shown
    assert "━" in shown
    assert "result: the/result" in shown


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def test_a_run_made_longer_and_cut_off_is_not_done(alone: Mesh, desk: Path) -> None:
    """The result that is there is that of the shorter one."""
    folder = desk / "runs" / "spec"
    longer = ("train", "run", "spec.json", "--local", "--epochs", "9")
    begin(alone, desk, [{"say": COMPLETED}], [{"signal": 9}], [{"say": STOPPED}, {"exit": 75}])
    assert alone("train", "run", "spec.json", "--local").exit_code == 0
    (folder / "result").mkdir()
    assert "is done" in alone("train", "run", "spec.json", "--local").stdout
    assert "somebody killed the worker" in alone(*longer).stderr
    again = alone(*longer)
    assert "is done" not in again.stdout
    assert "stopped after step 7" in again.stderr
    assert len(starts(folder)) == 3


def test_a_folder_that_can_not_be_written_is_one_line(alone: Mesh, desk: Path) -> None:
    (desk / "file").write_text("no folder")
    found = alone("train", "run", "spec.json", "--local", "--out", "file/run")
    assert found.exit_code == 1
    assert "can't be written: not a directory" in found.stderr
    assert "internal" not in found.stderr


def test_only_a_run_that_goes_on_can_be_paused(alone: Mesh, desk: Path) -> None:
    folder = begin(alone, desk, [{"say": COMPLETED}])
    again = f"`mesh train run --local --out {folder}` goes on with it"
    refused = alone("train", "pause", "runs/spec")
    assert (refused.exit_code, refused.stderr) == (1, f"mesh: runs/spec: no worker trains there now; {again}\n")
    refused = alone("train", "resume", "runs/spec")
    assert (refused.exit_code, "runs/spec is not paused" in refused.stderr) == (1, True)
    for name in ("nothing", "model"):
        for command in ("pause", "resume"):
            assert alone("train", command, name).exit_code == 2
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert alone("train", "pause", "runs/spec").exit_code == 0
    assert (folder / "pause").exists()
    assert alone("train", "resume", "runs/spec").stdout == f"no worker trains there now; {again}\n"
    assert not (folder / "pause").exists()


def test_who_calls_a_paused_run_again_wants_it_to_go_on(alone: Mesh, desk: Path) -> None:
    folder = begin(alone, desk, [{"say": COMPLETED}])
    (folder / "pause").touch()
    assert alone("train", "run", "spec.json", "--local").exit_code == 0
    assert not (folder / "pause").exists()


def test_a_merged_model_is_asked_for_by_an_option(alone: Mesh, desk: Path) -> None:
    alone("train", "run", "spec.json", "--local", "--merge")
    assert RunFolder(desk / "runs" / "spec").read_plan().spec.merge
