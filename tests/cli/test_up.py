"""`mesh up`: from the command line to the daemon's options."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.cli.conftest import Mesh

from tiermesh.config import DaemonOptions


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[DaemonOptions]:
    """The options with which a daemon would have been run; it ends with 7."""
    seen: list[DaemonOptions] = []

    def run(options: DaemonOptions) -> int:
        seen.append(options)
        return 7

    stand_in = ModuleType("tiermesh.daemon.app")
    stand_in.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiermesh.daemon.app", stand_in)
    return seen


def test_every_option_arrives(home: Path, alone: Mesh, started: list[DaemonOptions]) -> None:
    done = alone(
        *("up", "--state-dir", "s", "--name", "pc", "--port", "8123", "--cluster", "den", "--tier", "2"),
        *(
            "--model",
            "m",
            "--precision",
            "bf16",
            "--engine",
            "localhost:1",
            "--engine",
            "http://h:2",
            "--no-detect",
            "--interface",
            "lo",
        ),
        *("--join", "h:1", "--join", "i", "--log-format", "json", "--log-level", "debug"),
    )
    assert done.exit_code == 7, "the daemon's own exit code"
    (options,) = started
    assert (options.state_dir, options.name, options.port, options.cluster) == (home / "s", "pc", 8123, "den")
    assert (options.tier, options.detect, options.interface) == (2, False, "lo")
    assert ([model.name for model in options.models], options.precision) == (["m"], "bf16")
    assert [engine.url for engine in options.engines] == ["http://localhost:1", "http://h:2"]
    assert options.join == ("h:1", "i:8000")
    assert (options.log_format, options.log_level) == ("json", "debug")


def test_nothing_said_is_all_defaults(alone: Mesh, started: list[DaemonOptions]) -> None:
    alone("up")
    (options,) = started
    assert (options.port, options.port_may_move, options.tier, options.token) == (8000, True, None, None)


def test_a_file_is_read(home: Path, alone: Mesh, started: list[DaemonOptions], monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "my.yaml").write_text("cluster: den\ntoken: t\n")
    alone("up", "--config", "my.yaml")
    monkeypatch.setenv("MESH_CONFIG", "my.yaml")
    alone("up", "--cluster", "lab")
    assert [(options.cluster, options.token) for options in started] == [("den", "t"), ("lab", "t")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--name", "a b"), "--name is 'a b'"),
        (("--join", ":"), "--join is ':'"),
        (("--model", ""), "--model is '', but must be a name from `mesh model list`, a folder, or ORG/NAME"),
        (("--engine", "h:x"), "--engine is 'h:x'"),
        (("--engine", "h", "--no-engine"), "contradict"),
        (("--config", "none.yaml"), "can't read the configuration none.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_2(
    alone: Mesh, started: list[DaemonOptions], arguments: tuple[str, ...], said: str
) -> None:
    done = alone("up", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert started == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--precision", "fp8"), "Invalid value for '--precision': 'fp8' is not one of 'auto', 'fp32', 'bf16'."),
        (("--port", "99999"), "Invalid value for '--port': must be less than or equal to 65535"),
    ],
)
def test_a_value_that_is_none_is_told_in_plain_words(alone: Mesh, arguments: tuple[str, ...], said: str) -> None:
    done = alone("up", *arguments)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == f"Error: {said}"


def test_the_token_is_no_option_since_others_can_read_a_command_line(alone: Mesh) -> None:
    assert alone("up", "--token", "t").exit_code == 2
