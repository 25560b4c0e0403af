"""Which daemon a command talks to."""

from __future__ import annotations

import json
import secrets
import socket
from pathlib import Path

import pytest
from tests.cli.conftest import Mesh
from tests.mesh_fake import FakeMesh
from typer.testing import CliRunner

from tiermesh.cli.main import app


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def configure(home: Path, text: str) -> None:
    (home / "cluster.yaml").write_text(f"port: {free_port()}\n{text}")


def runtime(home: Path, url: str) -> None:
    (home / "state").mkdir(exist_ok=True)
    (home / "state" / "runtime.json").write_text(json.dumps({"pid": 1, "port": 1, "url": url, "node_id": "x"}))


def test_the_option_wins_over_the_environment(fake: FakeMesh, mesh: Mesh) -> None:
    assert mesh("cluster", "status").exit_code == 0
    assert mesh("cluster", "status", "--url", "http://127.0.0.1:1").exit_code == 1
    done = CliRunner().invoke(app, ["cluster", "status", "--url", fake.address], env={"MESH_URL": "http://127.0.0.1:1"})
    assert done.exit_code == 0, done.output


def test_this_users_daemon_says_where_it_listens(home: Path, fake: FakeMesh, alone: Mesh) -> None:
    configure(home, "discovery: {method: explicit}")
    runtime(home, fake.url)
    assert alone("cluster", "status").exit_code == 0


def test_a_daemon_that_died_left_a_stale_note(home: Path, fake: FakeMesh, alone: Mesh) -> None:
    (home / "cluster.yaml").write_text(f"port: {fake.url.rpartition(':')[2]}\ndiscovery: {{method: explicit}}\n")
    runtime(home, f"http://127.0.0.1:{free_port()}")
    assert alone("cluster", "status").exit_code == 0
    (home / "state" / "runtime.json").write_text("{garbage")
    assert alone("cluster", "status").exit_code == 0


def test_nobody_on_this_machine_and_no_mdns(home: Path, alone: Mesh) -> None:
    configure(home, "discovery: {method: explicit}")
    done = alone("cluster", "status")
    assert done.exit_code == 1
    assert done.stderr == (
        "mesh: no daemon answers on this machine. Start one with `mesh up`, or name a node with --url\n"
    )


def test_nobody_by_mdns_either(home: Path, alone: Mesh) -> None:
    configure(home, f"interface: 127.0.0.1\ncluster: test-{secrets.token_hex(4)}\n")
    done = alone("cluster", "status")
    assert done.exit_code == 1
    assert "neither on this machine nor by mDNS" in done.stderr


def test_the_token_comes_from_the_file_and_the_environment_wins(
    home: Path, fake: FakeMesh, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.token = "key"
    configure(home, "token: key")
    assert mesh("cluster", "status").exit_code == 0
    monkeypatch.setenv("MESH_TOKEN", "other")
    assert mesh("cluster", "status").exit_code == 1


def test_a_broken_file_is_wrong_use(home: Path, mesh: Mesh) -> None:
    configure(home, "rooting: {}")
    done = mesh("cluster", "status")
    assert done.exit_code == 2
    assert done.stderr == "mesh: cluster.yaml: rooting is no setting; did you mean routing?\n"
