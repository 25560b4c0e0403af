"""`POST /api/cluster/test`: a node tries its engines, and the others by each of their addresses."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from tests.daemon.still_mesh import WALL, StillMesh, still_mesh
from tests.openai_fake import FakeOpenAI

from tiermesh.adapters.probe import Prober
from tiermesh.protocol.diagnose import DiagnoseReport, Probe
from tiermesh.types import Address


async def diagnose(mesh: StillMesh, node: str) -> DiagnoseReport:
    status, body, _ = await mesh.post(node, "/api/cluster/test", {})
    assert status == 200, body
    return DiagnoseReport.model_validate(body)


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def ask(address: str, node_id: str = "a" * 32, name: str = "alpha") -> Probe:
    async with Prober() as prober:
        return await prober.ask(address, node_id, name)


async def test_a_healthy_pair() -> None:
    async with still_mesh({"a": 1, "b": 2}, {"a": ("m",), "b": ("m",)}) as mesh:
        report = await diagnose(mesh, "a")
        (trial,) = report.engines
        assert (trial.engine, trial.model, trial.problem) == ("fake", "m", None)
        (peer,) = report.peers
        assert (peer.id, peer.name) == (mesh.nodes["b"].id, "b")
        (found,) = peer.probes
        assert (found.address, found.problem, found.version) == (mesh.nodes["b"].address, None, "0.0.test")
        assert found.latency_ms is not None
        assert found.latency_ms > 0
        assert found.skew_s is not None
        assert abs(found.skew_s) > 1000, f"the test's clock stands at {WALL}"


async def test_a_trial_is_one_token_of_the_nodes_own_engine() -> None:
    async with still_mesh({"a": 1, "b": 2}, {"a": ("m",), "b": ("m",)}) as mesh:
        await diagnose(mesh, "a")
        fakes = {name: node.fake for name, node in mesh.nodes.items()}
        assert fakes["a"] is not None
        assert fakes["b"] is not None
        assert [body["max_tokens"] for body in fakes["a"].requests] == [1]
        assert fakes["b"].requests == []


@pytest.mark.parametrize("model", ["m+500", "m+garbage", "m+reset"])
async def test_an_engine_that_fails_is_a_finding_and_no_error(model: str) -> None:
    async with still_mesh({"a": 1}, {"a": (model,)}) as mesh:
        (trial,) = (await diagnose(mesh, "a")).engines
        assert trial.problem


async def test_each_address_of_a_member_is_tried() -> None:
    async with still_mesh({"a": 1, "b": 2, "c": None}, {"a": ("m",), "b": ("m",)}) as mesh:
        good, refused, other = mesh.nodes["b"].address, f"127.0.0.1:{closed_port()}", mesh.nodes["c"].address
        mesh.mark("b", "up", addresses=tuple(map(Address, (good, refused, other))))
        peers = {peer.name: peer for peer in (await diagnose(mesh, "a")).peers}
        assert [one.problem for one in peers["b"].probes] == [None, "refused", "wrong_node"]
        assert peers["b"].probes[2].answered_by is not None
        assert peers["b"].probes[2].answered_by.name == "c"
        assert [one.problem for one in peers["c"].probes] == [None]


async def test_members_that_are_down_are_not_tried() -> None:
    async with still_mesh({"a": 1, "b": 2}, {"a": ("m",), "b": ("m",)}) as mesh:
        mesh.mark("b", "down")
        assert (await diagnose(mesh, "a")).peers == []


async def test_a_name_that_differs_is_a_twin() -> None:
    async with still_mesh({"a": 1, "b": None}, {"a": ("m",)}) as mesh:
        found = await ask(mesh.nodes["b"].address, mesh.nodes["b"].id, "bertha")
        assert found.problem == "twin"


async def test_a_stranger_answers() -> None:
    async with FakeOpenAI() as fake:
        found = await ask(fake.url.removeprefix("http://"))
        assert (found.problem, found.detail) == ("stranger", "HTTP 404 from no Tiermesh daemon")


async def test_nobody_listens() -> None:
    assert (await ask(f"127.0.0.1:{closed_port()}")).problem == "refused"


async def test_a_name_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    assert (await ask("no-such-host.invalid:8000")).problem == "unresolved"


async def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiermesh.adapters.probe.ANSWER_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = await ask(f"127.0.0.1:{silent.getsockname()[1]}")
    assert (found.problem, found.detail) == ("timeout", "no answer within 0.1 s")


async def test_who_waits_for_a_turn_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two silent addresses before it, one turn at a time: the third has its whole time still."""
    monkeypatch.setattr("tiermesh.adapters.probe.ANSWER_S", 1.0)
    monkeypatch.setattr("tiermesh.adapters.probe.AT_ONCE", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dead = f"127.0.0.1:{silent.getsockname()[1]}"
        async with still_mesh({"a": None}, {}) as mesh, Prober() as prober:
            node = mesh.nodes["a"]
            found = await asyncio.gather(*(prober.ask(at, node.id, "a") for at in (dead, dead, node.address)))
    assert [one.problem for one in found] == ["timeout", "timeout", None]


async def test_the_token_is_demanded() -> None:
    async with still_mesh({"a": None}, {}, token="key") as mesh:
        status, body, _ = await mesh.post("a", "/api/cluster/test", {})
        assert (status, body["error"]["type"]) == (401, "unauthenticated")


async def test_two_who_ask_at_once_are_answered_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0

    async def counted(*arguments: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return DiagnoseReport.model_validate(
            {"node": {"id": "x", "name": "a"}, "version": "", "engines": [], "peers": []}
        )

    monkeypatch.setattr("tiermesh.daemon.api.diagnose.run_diagnosis", counted)
    async with still_mesh({"a": None}, {}) as mesh:
        await asyncio.gather(*(diagnose(mesh, "a") for _ in range(5)))
    assert most == 1
