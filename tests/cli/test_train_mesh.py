"""`mesh train` and `mesh jobs` against a scripted mesh: what is shown, asked, sent, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import typer
from tests.cli.conftest import Mesh
from tests.jobs_fake import ESTIMATE, FakeJobs
from tests.training_runs import write_data, write_spec
from typer.main import get_command
from typer.testing import CliRunner, Result

from tiermesh.cli import names
from tiermesh.cli.main import app
from tiermesh.daemon.api.jobs import LOG_LINES
from tiermesh.protocol.jobs import LISTED, MAX_LISTED, GateReport, HappenedReport, Progress, TriedReport

DEADLINE_S = 100.0


@pytest.fixture
def jobs() -> Iterator[FakeJobs]:
    with FakeJobs() as fake:
        yield fake


@pytest.fixture
def mesh(jobs: FakeJobs, home: Path) -> Mesh:
    write_data(home / "faq.jsonl")
    write_spec(home / "spec.yaml", model_name="smollm2:135m", dataset_path="faq.jsonl", num_epochs=2)

    def run(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin, env={"MESH_URL": jobs.url})

    return run


Talk = Callable[..., "Terminal"]


class Terminal:
    """A command as a person has it on a terminal."""

    def __init__(self, url: str, folder: Path, *arguments: str) -> None:
        self._end, inner = pty.openpty()
        self.said = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tiermesh.cli.main", *arguments],
            cwd=folder,
            env={**os.environ, "MESH_URL": url, "COLUMNS": "200", "TERM": "xterm"},
            stdin=inner,
            stdout=inner,
            stderr=inner,
        )
        os.close(inner)

    def expect(self, words: str) -> None:
        """Read until it says this."""
        deadline = time.monotonic() + DEADLINE_S
        while words not in self.said:
            assert time.monotonic() < deadline, self.said
            assert self._read(), self.said

    def say(self, line: str) -> None:
        os.write(self._end, f"{line}\n".encode())

    def interrupt(self) -> None:
        """Ctrl-C, and again when nothing comes of it: just before it reads a line, Python does not heed it."""
        deadline = time.monotonic() + DEADLINE_S
        while self.process.poll() is None and time.monotonic() < deadline:
            self.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)

    def end(self) -> tuple[int, str]:
        while self._read():
            pass
        os.close(self._end)
        return self.process.wait(DEADLINE_S), self.said

    def _read(self) -> bool:
        try:
            block = os.read(self._end, 65536)
        except OSError:  # how a terminal ends
            return False
        self.said += block.decode("utf-8", "replace")
        return bool(block)


@pytest.fixture
def terminal(jobs: FakeJobs, mesh: Mesh, home: Path) -> Iterator[Talk]:
    started: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        started.append(Terminal(jobs.url, home, *arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def test_a_job_is_shown_sent_and_followed(mesh: Mesh, jobs: FakeJobs) -> None:
    done = mesh("train", "spec.yaml", "--epochs", "3", "--name", "faq")
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["model       smollm2:135m", "method      lora, rank 16, alpha 32"]
    assert lines[2].startswith("data        faq.jsonl: jsonl, 40 records, ")
    for part in (
        "length      3 epochs",
        "batch       4 rows of up to 512 tokens",
        "job faq is with the mesh, by alpha",
        "node        gpu1 (a10g): the most free memory",
        "time        12 min (10 min to 15 min), 120 steps of 8 rows",
        "memory      2.3 GB (2.1 GB to 2.5 GB)",
        "cost        0.22 USD (0.18 to 0.28), at 0.000306 USD a second",
        "reckoned    a probe of 3 steps",
        "gate        runs: 0.28 USD is over 0.20",
        "attempt 1 on gpu1",
        "step 2/2  loss 1.5000  lr 1.0e-04  300 tokens/s  0 s left",
        "held-out loss: 1.0000, 2.0000 before",
        "result: `mesh jobs results faq --out FOLDER` fetches its files",
        'served on alpha, gpu1: mesh ask --model faq "..."',
    ):
        assert part in lines, done.stdout
    body = jobs.only().body
    assert (body["spec"]["num_epochs"], body["spec"]["model_name"], body["name"]) == (3, "smollm2:135m", "faq")
    assert not {"approve", "max_usd"} & {name for name, value in body.items() if value}


def test_data_that_can_not_be_used_is_told_before_anybody_is_asked(mesh: Mesh, jobs: FakeJobs, home: Path) -> None:
    (home / "faq.jsonl").write_text('{"nothing": 1}\n')
    done = mesh("train", "spec.yaml")
    assert (done.exit_code, jobs.requests) == (2, [])
    assert "has no record that can be used: line 1 has no text, prompt and completion, or messages" in done.stderr


def test_bad_lines_are_shown(mesh: Mesh, home: Path) -> None:
    with (home / "faq.jsonl").open("a") as file:
        file.write('{"text": ""}\nnonsense\n')
    lines = mesh("train", "spec.yaml", "--detach").stdout.splitlines()
    assert lines[2].endswith("2 bad ones left out:")
    assert lines[3] == "            line 41 text: is empty"
    assert lines[4].startswith("            line 42 is not JSON")


def test_detached_it_is_sent_and_left(mesh: Mesh, jobs: FakeJobs) -> None:
    done = mesh("train", "spec.yaml", "--name", "faq", "--detach", "--yes", "--max-usd", "2.5", "--priority", "7")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (
        0,
        "job faq is with the mesh; `mesh jobs watch faq` follows it",
    )
    assert jobs.only().report.state == "queued"
    body = jobs.only().body
    assert (body["approve"], body["max_usd"], body["priority"]) == (True, 2.5, 7)
    told = json.loads(mesh("train", "spec.yaml", "--name", "two", "--detach", "--json").stdout)
    assert (told["name"], told["state"]) == ("two", "queued")


def test_a_name_that_was_taken_and_a_reason_to_wait_are_said(mesh: Mesh, jobs: FakeJobs) -> None:
    jobs.has("faq", "completed")
    jobs.desk.waits_for = "waits: no node is called gpu9; there are n1, n2"
    done = mesh("train", "spec.yaml", "--name", "faq", "--detach")
    assert (done.exit_code, done.stderr) == (0, "mesh: the name faq was taken: this job is faq-2\n")
    assert done.stdout.splitlines()[-1] == "it is queued: waits: no node is called gpu9; there are n1, n2"


def test_what_a_result_must_reach_is_said(mesh: Mesh, jobs: FakeJobs) -> None:
    jobs.desk.demands = "a final training loss of at most 2"
    done = mesh("train", "spec.yaml", "--detach")
    last = "to be served it must reach a final training loss of at most 2; `--gate max_final_loss=any` asks for no loss"
    assert done.stdout.splitlines()[-1] == last


def test_what_is_cancelled_already_is_not_cancelled_again(mesh: Mesh, jobs: FakeJobs) -> None:
    jobs.has("faq", "running")
    assert mesh("jobs", "cancel", "faq").stdout == "job faq is cancelled\n"
    done = mesh("jobs", "cancel", "faq")
    assert (done.exit_code, done.stdout) == (0, "job faq is over already (cancelled): nothing was done\n")


def test_gates_of_a_job(mesh: Mesh, jobs: FakeJobs) -> None:
    gates = ("--gate", "max_final_loss=any", "--gate", "max_gap=1.5", "--gate", "canary=false")
    assert mesh("train", "spec.yaml", "--detach", *gates).exit_code == 0
    assert jobs.only().body["gates"] == {"max_final_loss": "any", "max_gap": 1.5, "canary": False}
    done = mesh("train", "spec.yaml", "--gate", "loss=2")
    assert (done.exit_code, "there are max_final_loss, max_gap, canary" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            ("--gate", "max_final_loss=banana"),
            "--gate max_final_loss is 'banana', but must be a number of at least 0, or any",
        ),
        (("--gate", "canary=maybe"), "--gate canary is 'maybe', but must be true or false"),
        (
            ("--name", "x/../y"),
            "--name 'x/../y': a name has letters (a-z), digits, '.', '_', ':' and '-', begins with a letter "
            "or a digit, and has at most 100 characters",
        ),
        (("--set", "lora.rr=8"), "lora.rr is no field; did you mean lora.r?"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_shown_or_sent(
    mesh: Mesh, jobs: FakeJobs, wrong: tuple[str, str], said: str
) -> None:
    done = mesh("train", "spec.yaml", *wrong)
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", f"mesh: {said}\n")
    assert jobs.desk.jobs == {}


def test_json_is_the_job_and_its_events(mesh: Mesh) -> None:
    done = mesh("train", "spec.yaml", "--json")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["state"] for one in told if one["event"] == "job"] == ["queued", "running", "completed"]
    assert [one["step"] for one in told if one["event"] == "step"] == [1, 2]
    assert "spec" not in told[0]


def test_lost_replies_and_a_missing_coordinator_are_waited_out(mesh: Mesh, jobs: FakeJobs) -> None:
    jobs.desk.no_coordinator, jobs.desk.lose_replies = 2, 1
    done = mesh("train", "spec.yaml", "--detach")
    assert (done.exit_code, jobs.desk.posts, len(jobs.desk.jobs)) == (0, 4, 1)
    assert done.stderr.splitlines()[0] == "mesh: no coordinator at the moment; trying again"
    assert len(done.stderr.splitlines()) == 2


def test_a_refused_job_says_why(mesh: Mesh, jobs: FakeJobs) -> None:
    jobs.desk.refuses = True
    done = mesh("train", "spec.yaml", "--name", "faq")
    assert (done.exit_code, done.stderr) == (1, "mesh: job faq refused: over 5.00 USD\n")


def test_without_a_terminal_it_is_said_how_to_decide(mesh: Mesh, jobs: FakeJobs) -> None:
    jobs.desk.asks = True
    done = mesh("train", "spec.yaml", "--name", "faq")
    assert (done.exit_code, done.stderr) == (
        3,
        "mesh: job faq waits for somebody's word (0.28 USD is over 0.20): `mesh jobs approve faq`, `mesh jobs optimize "
        "faq` for a cheaper one, or `mesh jobs cancel faq`\n",
    )
    assert "gate        waits for your word: 0.28 USD is over 0.20" in done.stdout
    assert mesh("jobs", "approve", "faq").stdout == "job faq is queued\n"
    done = mesh("jobs", "optimize", "faq")
    assert (done.exit_code, done.stderr) == (1, "mesh: job faq is queued: nothing is left to optimize\n")
    done = mesh("jobs", "watch", "faq")
    assert (done.exit_code, "step 2/2" in done.stdout) == (0, True)


def test_yes_is_said_beforehand(mesh: Mesh, jobs: FakeJobs) -> None:
    jobs.desk.asks = True
    assert mesh("train", "spec.yaml", "--yes").exit_code == 0


def test_a_person_makes_it_cheaper_and_then_approves(terminal: Talk, jobs: FakeJobs) -> None:
    jobs.desk.asks = True
    person = terminal("train", "spec.yaml", "--name", "faq")
    person.expect("decide later?")
    person.say("what?")
    person.say("o")
    person.expect("0.15 USD is over 0.10")
    person.say("a")
    code, said = person.end()
    assert (code, jobs.only().report.state) == (0, "completed")
    assert "served on alpha, gpu1" in said


def test_a_person_cancels(terminal: Talk, jobs: FakeJobs) -> None:
    jobs.desk.asks = True
    person = terminal("train", "spec.yaml", "--name", "faq")
    person.expect("decide later?")
    person.say("c")
    code, said = person.end()
    assert (code, jobs.only().report.state, "mesh: job faq cancelled\r\n" in said) == (1, "cancelled", True)


def test_ctrl_c_at_the_question_leaves_it_waiting(terminal: Talk, jobs: FakeJobs) -> None:
    jobs.desk.asks = True
    person = terminal("train", "spec.yaml", "--name", "faq")
    person.expect("decide later?")
    person.interrupt()
    code, said = person.end()
    assert (code, jobs.only().report.state, "`mesh jobs approve faq`" in said) == (3, "waiting", True)


def test_ctrl_c_lets_go_of_a_job(terminal: Talk, jobs: FakeJobs) -> None:
    jobs.desk.holds = True
    person = terminal("train", "spec.yaml", "--name", "faq")
    person.expect("300 tokens/s")
    person.process.send_signal(signal.SIGINT)
    code, said = person.end()
    assert (code, jobs.only().report.state) == (130, "running")
    assert "mesh: job faq goes on; `mesh jobs watch faq` follows it, `mesh jobs cancel faq` ends it" in said


def test_a_sentence_is_shown_and_confirmed(terminal: Talk, jobs: FakeJobs) -> None:
    person = terminal("train", "fine-tune smollm2 with LoRA on faq.jsonl for 3 epochs, batch size 8, call it faq")
    person.expect("Train this? [Y/n]")
    assert 'model_name        "smollm2:135m"   (“smollm2”)' in person.said
    assert "faq.jsonl: jsonl, 40 records" in person.said
    person.say("")
    assert person.end()[0] == 0
    body = jobs.only().body
    assert (body["name"], body["spec"]["num_epochs"], body["spec"]["micro_batch_size"]) == ("faq", 3, 8)


def test_what_was_not_understood_of_a_sentence_is_told_and_doubted(terminal: Talk, jobs: FakeJobs) -> None:
    person = terminal("train", "fine-tune smollm2 on faq.jsonl very gently")
    person.expect("Train this, without what was not understood? [y/N]")
    assert "not understood: “very gently”" in person.said
    person.say("")
    assert (person.end()[0], jobs.desk.jobs) == (1, {})


def test_a_sentence_without_a_terminal(mesh: Mesh, jobs: FakeJobs) -> None:
    sentence = "fine-tune smollm2 on faq.jsonl, rank 8"
    done = mesh("train", sentence)
    assert (done.exit_code, "a sentence is confirmed before it runs" in done.stderr) == (2, True)
    done = mesh("train", f"{sentence} gently", "--yes")
    assert (done.exit_code, done.stderr) == (2, "mesh: not understood: gently. Say it otherwise\n")
    done = mesh("train", f"{sentence} for 2 epochs and 3 epochs", "--yes")
    assert (done.exit_code, "the sentence is not clear: num_epochs is both 2" in done.stderr) == (2, True)
    done = mesh("train", "fine-tune smollm2", "--yes")
    assert (done.exit_code, "dataset_path is missing" in done.stderr) == (2, True)
    assert jobs.desk.jobs == {}
    done = mesh("train", *sentence.split(), "--yes", "--epochs", "5", "--set", "lora.alpha=16")
    assert done.exit_code == 0
    spec = jobs.only().body["spec"]
    assert (spec["num_epochs"], spec["lora"]) == (5, {"r": 8, "alpha": 16})


def test_the_list(mesh: Mesh, jobs: FakeJobs) -> None:
    assert mesh("jobs").stdout == "no training jobs; `mesh train SPEC` makes one\n"
    facts = {"model": "m", "method": "lora"}
    jobs.has("old", "completed", ended_at=1_780_003_600.0, reason="all is well", **facts)
    jobs.has("big", "queued", reason="needs 9.1 GB, the largest node, gpu1, has 7.4", **facts)
    now = Progress(phase="train", step=12, steps=120, loss=2.34567, tokens_per_s=312.4, eta_s=180.0)
    jobs.has("new", "running", progress=now, **facts)
    jobs.has("again", "running", progress=now, attempt=3, retries=1, **facts)
    ended = now.model_copy(update={"step": 120, "eta_s": 0.0, "phase": "evaluate"})
    jobs.has("judged", "running", progress=ended, **facts)
    jobs.has("kept", "running", progress=ended.model_copy(update={"phase": "result"}), **facts)
    for command in (("jobs",), ("jobs", "list")):
        lines = mesh(*command).stdout.splitlines()
        assert lines[0].split() == ["job", "state", "model", "method", "node", "elapsed"]
        assert lines[1].split() == ["old", "completed", "m", "lora", "gpu1", "60", "min"]
        assert lines[2].endswith("needs 9.1 GB, the largest node, gpu1, has 7.4")
        assert lines[3].endswith("  step 12/120, loss 2.3457, 312 tokens/s, 3 min left")
        assert lines[4].endswith("  retry 1, step 12/120, loss 2.3457, 312 tokens/s, 3 min left")
        assert lines[5].endswith("  step 120/120, loss 2.3457, judging the result")
        assert lines[6].endswith("  step 120/120, loss 2.3457, writing the result")
    listed = [job["name"] for job in json.loads(mesh("jobs", "--json").stdout)]
    assert listed == ["old", "big", "new", "again", "judged", "kept"]


def test_all_about_one_job(mesh: Mesh, jobs: FakeJobs) -> None:
    jobs.has(
        "faq",
        "completed",
        ended_at=1_780_000_090.0,
        estimate=ESTIMATE,
        gate=GateReport(decision="approve", reason="at most 0.28 USD"),
        attempts=[
            TriedReport(number=1, node="gpu1", state="failed", failure="out_of_memory", reason="no room"),
            TriedReport(number=2, node="gpu2", state="completed", why="half the batch", step=9, steps=9),
        ],
        happened=[HappenedReport(at=1_780_000_000.0, kind="submit", text="by desk")],
        result={"train_loss": 1.5, "held_out_loss": 0.0, "held_out_loss_before": 2.0, "step": 9},
        served=["gpu1"],
    )
    shown = mesh("jobs", "show", "faq").stdout
    for part in (
        "job         faq (FAQ)",
        "elapsed     90 s" if "elapsed     90 s" in shown else "elapsed     2 min",
        "  gate        runs: at most 0.28 USD",
        "  1. on gpu1: failed out_of_memory: no room",
        "  2. on gpu2 (half the batch): completed, step 9/9",
        "submit     by desk",
        "  final loss  1.5000",
        "  held-out    0.0000, 2.0000 before",
        "  perplexity  1.00",
        "  served as   faq on gpu1",
    ):
        assert part in shown, shown


def test_an_unknown_job_is_not_found_whatever_is_asked(mesh: Mesh) -> None:
    for command in ("show", "logs", "watch", "results", "approve", "optimize", "retry", "cancel", "report", "rm"):
        done = mesh("jobs", command, "nope")
        assert (done.exit_code, done.stdout, done.stderr) == (1, "", "mesh: no job is called 'nope'\n"), command


def test_results_are_fetched(mesh: Mesh, jobs: FakeJobs, home: Path) -> None:
    jobs.has("now", "running")
    done = mesh("jobs", "results", "now")
    assert (done.exit_code, done.stderr) == (1, "mesh: job now is running: it has no result yet\n")
    jobs.has("faq", "completed", ended_at=1_780_000_010.0, result={"loss": 1.5, "step": 9})
    done = mesh("jobs", "results", "faq", "--out", "here")
    assert done.stdout.splitlines() == [
        "job         faq",
        "state       completed",
        "elapsed     10 s",
        "final loss  1.5000",
        "steps       9",
        "  adapter.bin  7 B",
        "  more/card.md  6 B",
        "fetched to here",
    ]
    assert (home / "here" / "adapter.bin").read_bytes() == b"weights"
    assert json.loads(mesh("jobs", "results", "faq", "--json").stdout)["artifact"] == "a" * 64
    jobs.has("bad", "failed", failure="out_of_memory", reason="no room", ended_at=1_780_000_010.0)
    done = mesh("jobs", "results", "bad")
    assert (done.exit_code, done.stdout.splitlines()[1]) == (0, "state       failed (out_of_memory): no room")
    done = mesh("jobs", "results", "bad", "--out", "there")
    assert (done.exit_code, done.stderr) == (1, "mesh: job bad failed, and left no files\n")


def test_logs_and_the_report(mesh: Mesh, jobs: FakeJobs, home: Path) -> None:
    jobs.has("faq", "completed")
    assert mesh("jobs", "logs", "faq").stdout == "loading\nready\n"
    assert mesh("jobs", "logs", "faq", "-n", "1").stdout == "ready\n"
    assert mesh("jobs", "logs", "faq", "-n", "0").stdout == "loading\nready\n"
    assert f"[default: {LOG_LINES}]" in " ".join(mesh("jobs", "logs", "--help").stdout.split())
    text, jobs.desk.log = jobs.desk.log, ""
    done = mesh("jobs", "logs", "faq")
    assert (done.exit_code, done.stdout, done.stderr) == (
        0,
        "",
        "mesh: the worker of attempt 1 has said nothing; what happened: mesh jobs watch faq\n",
    )
    jobs.desk.log = text
    assert mesh("jobs", "logs", "faq", "--follow").stdout == "loading\nready\n"
    assert mesh("jobs", "report", "faq").stdout == "# faq\n\n![loss](report.png)\n"
    assert json.loads(mesh("jobs", "report", "faq", "--json").stdout) == {"name": "faq"}
    assert mesh("jobs", "report", "faq", "--out", ".").stdout.splitlines() == ["report.md", "report.png"]
    assert (home / "report.png").read_bytes() == b"PNG"
    done = mesh("jobs", "report", "faq", "--out", "no/such/page.md")
    assert (done.exit_code, done.stderr) == (1, "mesh: can't write no/such/page.md: no such file or directory\n")


def test_a_long_list_says_that_it_is_not_whole(mesh: Mesh, jobs: FakeJobs) -> None:
    jobs.has("old", "running")
    for index in range(LISTED + 2):
        jobs.has(f"done-{index}", "completed")
    told = mesh("jobs").stdout.splitlines()
    assert (len(told), told[1].split()[0]) == (1 + 1 + LISTED + 1, "old"), "what is not over is always there"
    assert told[-1] == "2 more that are over, and ended before these; `mesh jobs --all` lists them"
    assert len(mesh("jobs", "--all").stdout.splitlines()) == 1 + 1 + LISTED + 2
    assert mesh("jobs", "list", "--limit", "0").stdout.splitlines()[1].split()[0] == "old"
    helped = " ".join(mesh("jobs", "--help").stdout.split())
    assert (f"[default: {LISTED}]" in helped, f"{MAX_LISTED:,} that are over" in helped) == (True, True)
    done = mesh("jobs", "list", "--limit", "1", "--json")
    assert [job["name"] for job in json.loads(done.stdout)] == ["old", f"done-{LISTED + 1}"]
    said = f"mesh: {LISTED + 1} more that are over, and ended before these; `mesh jobs --all` lists them\n"
    assert done.stderr == said


def test_jobs_that_are_over_are_forgotten(mesh: Mesh, jobs: FakeJobs) -> None:
    jobs.has("one", "completed")
    jobs.has("two", "running")
    done = mesh("jobs", "rm", "one", "two")
    assert (done.exit_code, done.stdout) == (1, "job one is forgotten\n")
    assert done.stderr == "mesh: job two is running: cancel it first\n"


def test_names_of_jobs_are_completed(jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.has("faq-1", "completed")
    jobs.has("faq-2", "running")
    jobs.has("other", "queued")
    monkeypatch.setattr(names, "WAIT_S", DEADLINE_S)
    shell = typer.Context(get_command(app))
    shell.params["url"] = jobs.url
    assert names.jobs(shell, "fa") == [("faq-2", "running"), ("faq-1", "completed")]
    shell.params["url"] = "http://127.0.0.1:9"
    assert names.jobs(shell, "fa") == []


def test_a_shell_completes(mesh: Mesh, home: Path) -> None:
    def completed(line: str) -> list[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - (not line.endswith(" ")))}
        done = subprocess.run(
            [sys.executable, "-m", "tiermesh.cli.main"],
            env={**os.environ, "_MESH_COMPLETE": "complete_bash", **words},
            cwd=home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        return done.stdout.split()

    assert completed("mesh train --method q") == ["qlora"]
    assert "smollm2:135m" in completed("mesh train --model smol")
