"""`mesh cluster test`: what is proved, and what is said of what fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.cli.conftest import Mesh
from tests.mesh_fake import ID, OTHER_ID, FakeMesh

from tiermesh.cli import causes
from tiermesh.protocol.cluster import NodeName
from tiermesh.protocol.diagnose import Probe, Problem


@pytest.fixture
def beta(fake: FakeMesh) -> Iterator[FakeMesh]:
    """A second node that `fake`, the coordinator, knows."""
    with FakeMesh() as other:
        other.node_id, other.name = OTHER_ID, "beta"
        fake.nodes = [other.node(role="member")]
        fake.diagnosis = {"engines": [trial()], "peers": [seen(other)]}
        other.diagnosis = {"engines": [trial()], "peers": [seen(fake)]}
        yield other


def trial(problem: str | None = None) -> dict[str, Any]:
    return {"engine": "ollama", "model": "fake", "latency_ms": 12.0, "problem": problem}


def seen(node: FakeMesh, problem: str | None = None) -> dict[str, Any]:
    probe = {"address": node.address, "problem": problem, "latency_ms": None if problem else 1.5}
    return {"id": node.node_id, "name": node.name, "probes": [probe]}


def failures(mesh: Mesh) -> dict[str, dict[str, Any]]:
    """The failed checks of `mesh cluster test`, by `node: check`."""
    done = mesh("cluster", "test", "--json")
    body = json.loads(done.stdout)
    failed = {f"{row['node']}: {row['check']}": row for row in body["findings"] if not row["ok"]}
    assert (done.exit_code, body["ok"]) == ((1, False) if failed else (0, True))
    return failed


def test_all_is_well(beta: FakeMesh, mesh: Mesh) -> None:
    done = mesh("cluster", "test")
    assert done.exit_code == 0, done.stdout
    for line in (
        "alpha",
        "  ✓ answers at ",
        "  ✓ runs the mesh's version: 0.1.0",
        "  ✓ keeps the time: ",
        "  ✓ follows the coordinator: alpha",
        "  ✓ engine ollama says one token of fake: 12 ms",
        "  ✓ is reached at every address by: beta",
        "all 11 checks passed",
    ):
        assert line in done.stdout
    assert failures(mesh) == {}


def test_a_node_that_is_down(beta: FakeMesh, fake: FakeMesh, mesh: Mesh) -> None:
    fake.nodes = [beta.node(state="down", role="member")]
    fake.diagnosis = None
    (found,) = failures(mesh).values()
    assert "run `mesh up` on beta" in found["advice"]["remedy"]
    done = mesh("cluster", "test")
    assert done.exit_code == 1
    assert "      likely: its machine is off" in done.stdout
    assert "1 of 4 checks failed" in done.stdout


def test_one_direction_fails_and_the_other_does_not(beta: FakeMesh, mesh: Mesh) -> None:
    assert beta.diagnosis is not None
    beta.diagnosis["peers"][0]["probes"][0]["problem"] = "timeout"
    ((check, found),) = failures(mesh).items()
    assert check.startswith("alpha: is reached by beta at 127.0.0.1:")
    assert found["advice"]["cause"]


def test_every_address_is_tried_from_here(beta: FakeMesh, fake: FakeMesh, mesh: Mesh) -> None:
    fake.nodes = [beta.node(role="member", urls=[beta.url, "http://127.0.0.1:1"])]
    ((check, found),) = failures(mesh).items()
    assert check == "beta: answers at 127.0.0.1:1"
    assert "loopback address" in found["advice"]["cause"]


def test_a_node_that_nobody_here_reaches_is_still_judged_by_the_others(
    beta: FakeMesh, fake: FakeMesh, mesh: Mesh
) -> None:
    fake.nodes = [beta.node(role="member", urls=["http://127.0.0.1:1"])]
    assert [*failures(mesh)] == ["beta: answers at 127.0.0.1:1"]


def test_an_engine_that_gives_nothing(beta: FakeMesh, mesh: Mesh) -> None:
    assert beta.diagnosis is not None
    beta.diagnosis["engines"] = [trial("HTTP 500: out of memory")]
    ((check, found),) = failures(mesh).items()
    assert check == "beta: engine ollama says one token of fake"
    assert found["detail"] == "HTTP 500: out of memory"


def test_an_older_version(beta: FakeMesh, fake: FakeMesh, mesh: Mesh) -> None:
    fake.version, beta.version = "0.10.0", "0.9.1"
    fake.nodes = [beta.node(role="member")]
    ((check, found),) = failures(mesh).items()
    assert check == "beta: runs the mesh's version"
    assert found["advice"]["remedy"] == "update beta: `pip install --upgrade tiermesh`"


def test_a_clock_that_is_wrong_is_the_other_nodes_not_this_machines(beta: FakeMesh, fake: FakeMesh, mesh: Mesh) -> None:
    fake.skew_s = beta.skew_s = 900.0
    assert failures(mesh) == {}
    beta.skew_s = 930.0
    ((check, found),) = failures(mesh).items()
    assert check == "beta: keeps the time"
    assert found["detail"] == "30.00 s ahead of alpha"


def test_a_node_with_another_token(beta: FakeMesh, mesh: Mesh) -> None:
    beta.token = "other"
    ((check, found),) = failures(mesh).items()
    assert check == "beta: accepts the token"
    assert "MESH_TOKEN" in found["advice"]["remedy"]


def test_a_node_that_can_not_test_itself(beta: FakeMesh, mesh: Mesh) -> None:
    beta.failure = (500, {"message": "oops"}, {})
    assert [*failures(mesh)] == ["beta: tests itself"]


def test_a_copied_state_folder(beta: FakeMesh, fake: FakeMesh, mesh: Mesh) -> None:
    beta.name = "copy"
    found = failures(mesh)[f"beta: answers at {beta.address}"]
    assert "same node id" in found["advice"]["cause"]
    assert "delete its state folder" in found["advice"]["remedy"]


@pytest.mark.parametrize(
    ("address", "problem", "otherwise", "cause", "remedy"),
    [
        ("192.168.1.5:8000", "timeout", False, "a firewall on beta drops what alpha sends", "sudo ufw allow 8000/tcp"),
        ("192.168.1.5:8000", "timeout", True, "a firewall on beta", "`--interface`"),
        ("192.168.1.5:8000", "refused", False, "nothing listens on port 8000", "run `mesh up` on beta"),
        ("192.168.1.5:8000", "unreachable", False, "no route", "`--interface`"),
        ("192.168.1.5:8000", "unresolved", False, "no address", "IP address"),
        ("192.168.1.5:8000", "broken", False, "broke off", "log"),
        ("192.168.1.5:8000", "stranger", True, "another program listens on port 8000", "another `--port`"),
        ("192.168.1.5:8000", "wrong_node", True, "two machines have the address 192.168.1.5", "its own address"),
        ("172.17.0.1:8000", "timeout", True, "container bridge", "`--interface`"),
        ("172.19.0.1:8000", "refused", True, "container bridge", "`--interface`"),
        ("172.24.0.1:8000", "unreachable", True, "no route", "`--interface`"),
        ("100.101.102.103:8000", "timeout", True, "VPN", "join it to the VPN"),
        ("[fd7a:115c:a1e0::1]:8000", "unreachable", True, "VPN", "join it to the VPN"),
        ("127.0.0.1:8000", "refused", False, "loopback address", "`--interface`"),
        ("[::1]:8000", "wrong_node", False, "loopback address", "`--interface`"),
        ("pc.local:8000", "refused", False, "nothing listens", "mesh up"),
    ],
)
def test_what_a_failed_probe_most_likely_means(
    address: str, problem: Problem, otherwise: bool, cause: str, remedy: str
) -> None:
    probe = Probe(address=address, problem=problem)
    advice = causes.of_probe(probe, asker="alpha", target="beta", otherwise_reached=otherwise)
    assert cause in advice.cause
    assert remedy in advice.remedy


def test_an_address_that_leads_back_to_the_asker() -> None:
    probe = Probe(address="172.17.0.1:8000", problem="wrong_node", answered_by=NodeName(id=ID, name="alpha"))
    advice = causes.of_probe(probe, asker="alpha", target="beta", asker_id=ID, otherwise_reached=True)
    assert "both machines have the address 172.17.0.1" in advice.cause
