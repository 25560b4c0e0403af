"""What every command has in common: help, version, exit codes, one line for an error."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from tests.cli.conftest import Mesh
from tests.mesh_fake import FakeMesh

from tiermesh import __version__
from tiermesh.cli import main

READERS = [
    ("ask", "x"),
    ("cluster", "status"),
    ("cluster", "test"),
    ("config", "show"),
]


def test_version_and_help(alone: Mesh) -> None:
    assert alone("--version").output == f"mesh {__version__}\n"
    for command in ((), ("up",), ("ask",), ("cluster",), ("cluster", "test"), ("config",), ("model",), ("demo",)):
        done = alone(*command, "--help")
        assert done.exit_code == 0
        assert "Usage" in done.output


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("up", "--tier", "3"), ("up", "--port", "x"), ("ask",), ("config", "apply")]
)
def test_wrong_use_is_2(alone: Mesh, arguments: tuple[str, ...]) -> None:
    assert alone(*arguments).exit_code == 2


@pytest.mark.parametrize("command", READERS)
def test_a_daemon_that_is_not_there_is_one_line_and_1(alone: Mesh, command: tuple[str, ...]) -> None:
    done = alone(*command, "--url", "http://127.0.0.1:1")
    assert done.exit_code == 1
    assert done.stderr.startswith("mesh: no daemon answers at http://127.0.0.1:1")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", READERS)
def test_every_reader_speaks_json(mesh: Mesh, command: tuple[str, ...]) -> None:
    done = mesh(*command, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)


@pytest.mark.parametrize("command", READERS)
def test_a_token_that_is_missing_is_asked_for(fake: FakeMesh, mesh: Mesh, command: tuple[str, ...]) -> None:
    fake.token = "key"
    done = mesh(*command)
    assert done.exit_code == 1
    assert "set MESH_TOKEN" in done.stderr


def test_what_nobody_foresaw_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(prog_name: str) -> None:
        raise ZeroDivisionError("out of the blue")

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "mesh: internal error: ZeroDivisionError: out of the blue. Set MESH_DEBUG=1 to see where\n"
    )
    monkeypatch.setenv("MESH_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main.main()


def test_ctrl_c_in_the_middle_of_an_answer(fake: FakeMesh) -> None:
    fake.ending = "hang"
    command = [sys.executable, "-m", "tiermesh.cli.main", "ask", "x", "--url", fake.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        assert asking.stdout.read(6) == "Paris."
        asking.send_signal(signal.SIGINT)
        out, err = asking.communicate(timeout=20)
    assert (asking.returncode, out, err) == (130, "\n", "")
    assert fake.hung_up.wait(5)


def test_a_reader_that_has_seen_enough(fake: FakeMesh) -> None:
    fake.pieces = ["word "] * 20_000
    command = [sys.executable, "-m", "tiermesh.cli.main", "ask", "x", "--url", fake.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        assert asking.stderr is not None
        assert asking.stdout.read(5) == "word "
        asking.stdout.close()
        assert asking.stderr.read() == ""
        assert asking.wait(20) == 0
