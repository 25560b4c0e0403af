"""`mesh cluster init` and `status`."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Mesh
from tests.mesh_fake import OTHER_ID, FakeMesh

from tiermesh.cli.render import size
from tiermesh.config import ClusterFile, load


def test_init_writes_a_file_that_loads_as_it_is(home: Path, alone: Mesh) -> None:
    assert alone("cluster", "init").exit_code == 0
    assert load(Path("cluster.yaml")) == ClusterFile()
    assert (home / "cluster.yaml").read_text().count("#") > 20
    assert (home / "cluster.yaml").stat().st_mode & 0o777 == 0o600


def test_init_refuses_to_overwrite_without_force(home: Path, alone: Mesh) -> None:
    path = home / "mine.yaml"
    path.write_text("cluster: den\n")
    done = alone("cluster", "init", str(path))
    assert (done.exit_code, done.stderr) == (2, f"mesh: {path} is there already; --force replaces it\n")
    assert path.read_text() == "cluster: den\n"
    assert alone("cluster", "init", str(path), "--force").exit_code == 0
    assert load(path) == ClusterFile()


def test_init_where_nothing_can_be_written(alone: Mesh) -> None:
    done = alone("cluster", "init", "none/cluster.yaml")
    assert (done.exit_code, done.stderr) == (2, "mesh: can't write none/cluster.yaml: No such file or directory\n")


def test_status_is_a_table_of_nodes(fake: FakeMesh, mesh: Mesh) -> None:
    unknown: dict[str, object] = {"cores": None, "ram_bytes": None, "gpus": []}
    fake.nodes = [
        fake.node(id=OTHER_ID, name="beta", state="down", role="member", tier=None, models=[], hardware=unknown)
    ]
    lines = mesh("cluster", "status").stdout.splitlines()
    assert lines[0] == "test · 1 up, 1 down · coordinator alpha · open: anyone on this network may ask"
    assert re.split(r"\s{2,}", lines[2].strip()) == [
        *("name", "tier", "state", "role", "models", "load", "health", "latency", "hardware")
    ]
    assert re.split(r"\s{2,}", lines[4].strip()) == [
        *("alpha (asked)", "2", "up", "coordinator", "fake", "1/4", "-", "0.4 ms"),
        "RTX 3090 24 GiB, 8 cores, 32 GiB",
    ]
    assert re.split(r"\s{2,}", lines[5].strip()) == ["beta", "-", "down", "member", "-", "-", "-", "-", "unknown"]


def test_status_says_that_a_token_is_required(fake: FakeMesh, mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.token = "key"
    monkeypatch.setenv("MESH_TOKEN", "key")
    assert "token required" in mesh("cluster", "status").stdout


def test_two_machines_of_one_name_are_told_apart(fake: FakeMesh, mesh: Mesh) -> None:
    fake.nodes = [fake.node(id=OTHER_ID, role="member")]
    assert "alpha bbbbbbbb" in mesh("cluster", "status").stdout


def test_names_are_shown_as_they_are(fake: FakeMesh, mesh: Mesh) -> None:
    model = {"name": "[red]x[/]", "digest": "d", "tier": 0, "engine": "e", "state": "cold"}
    fake.nodes = [fake.node(id=OTHER_ID, name="beta", models=[model])]
    assert "[red]x[/] (cold)" in mesh("cluster", "status").stdout


def test_a_model_that_is_being_loaded_shows_how_far_it_is(fake: FakeMesh, mesh: Mesh) -> None:
    model = {"name": "m", "digest": "d", "tier": 0, "engine": "kernel", "state": "loading", "progress": 0.4}
    fake.nodes = [fake.node(id=OTHER_ID, name="beta", models=[model])]
    assert "m (loading 40%)" in mesh("cluster", "status").stdout


def test_a_model_that_fails_shows_when_it_is_tried_next(fake: FakeMesh, mesh: Mesh) -> None:
    model = {"name": "m", "digest": "d", "tier": 0, "engine": "e", "state": "warm"}
    fake.nodes = [fake.node(id=OTHER_ID, name="beta", models=[model | {"breaker": "open", "retry_after_s": 7.2}])]
    assert "m (failing, next try in 7 s)" in mesh("cluster", "status").stdout
    fake.nodes = [fake.node(id=OTHER_ID, name="beta", models=[model | {"breaker": "half_open"}])]
    assert "m (on probation)" in mesh("cluster", "status").stdout


def test_status_shows_how_well_a_node_is_and_what_is_wrong(fake: FakeMesh, mesh: Mesh) -> None:
    ill = {"score": 61, "state": "degraded", "alerts": ["memory!", "disk"]}
    fake.nodes = [fake.node(id=OTHER_ID, name="beta", health=ill)]
    assert "degraded (memory!, disk)" in mesh("cluster", "status").stdout


def test_status_as_json_is_what_the_node_said(mesh: Mesh) -> None:
    body = json.loads(mesh("cluster", "status", "--json").stdout)
    assert (body["cluster"], body["nodes"][0]["name"]) == ("test", "alpha")


def test_watch_looks_again_until_ctrl_c_and_survives_a_node_that_goes(fake: FakeMesh) -> None:
    command = [sys.executable, "-m", "tiermesh.cli.main", "cluster", "status", "--watch", "--json", "--url", fake.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["cluster"] == "test"
        fake.failure = (503, {"type": "unavailable", "message": "going"}, {})
        while "going" not in (line := watching.stdout.readline()):
            assert json.loads(line)["cluster"] == "test"
        fake.failure = None
        while "going" in (line := watching.stdout.readline()):
            pass
        assert json.loads(line)["cluster"] == "test"
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=20)
    assert (watching.returncode, err) == (0, "")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (98_500_000, "98.5 MB"),
        (542e6, "542 MB"),
        (2e12, "2.0 TB"),
        (1e16, "10000 TB"),
    ],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text
