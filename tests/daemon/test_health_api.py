"""Health and metrics of a whole mesh: real daemons, each asked about all."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.openai_fake import FakeOpenAI

from tiermesh.client import RemoteClient
from tiermesh.config import DaemonOptions, Flags, resolve_options
from tiermesh.daemon.app import Daemon
from tiermesh.errors import EngineFailed, Unauthenticated, UnknownModel
from tiermesh.protocol.cluster import ClusterReport
from tiermesh.protocol.health import MeshHealthReport

LIMIT_S = 20.0


class Mesh:
    """Daemons by name, in one cluster of their own."""

    def __init__(self, folder: Path, *, token: str = "") -> None:
        self._folder = folder
        self._token = token
        self._cluster = f"test-{secrets.token_hex(4)}"
        self._daemons: dict[str, AsyncExitStack] = {}
        self.clients: dict[str, RemoteClient] = {}

    async def start(self, name: str, *engines: str) -> RemoteClient:
        async with AsyncExitStack() as stack:
            options = self._options(name, engines)
            daemon = Daemon(options)
            stack.push_async_callback(daemon.close)
            await daemon.start()
            url = json.loads((options.state_dir / "runtime.json").read_text())["url"]
            self.clients[name] = await stack.enter_async_context(RemoteClient(url, token=options.token))
            self._daemons[name] = stack.pop_all()
        return self.clients[name]

    async def stop(self, name: str) -> None:
        """Without a goodbye."""
        del self.clients[name]
        await self._daemons.pop(name).aclose()

    async def close(self) -> None:
        for name in [*self._daemons]:
            await self.stop(name)

    def _options(self, name: str, engines: tuple[str, ...]) -> DaemonOptions:
        flags = Flags(
            name=name,
            cluster=self._cluster,
            state_dir=self._folder / name,
            port=0,
            interface="127.0.0.1",
            no_detect=True,
            engines=engines,
            no_engine=not engines,
        )
        return resolve_options(flags, env={"MESH_TOKEN": self._token})


@asynccontextmanager
async def running(folder: Path, *, token: str = "") -> AsyncIterator[Mesh]:
    mesh = Mesh(folder, token=token)
    try:
        yield mesh
    finally:
        await mesh.close()


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with running(tmp_path) as mesh:
        yield mesh


async def cluster_where(client: RemoteClient, holds: Callable[[ClusterReport], bool]) -> ClusterReport:
    """Wait until it is so."""
    async with asyncio.timeout(LIMIT_S):
        while not holds(report := await client.cluster()):
            await asyncio.sleep(0.01)
    return report


def all_up(count: int, models: int = 0) -> Callable[[ClusterReport], bool]:
    def holds(report: ClusterReport) -> bool:
        up = [node for node in report.nodes if node.state == "up"]
        return report.coordinator is not None and len(up) == count and sum(len(n.models) for n in up) >= models

    return holds


async def scrape(client: RemoteClient) -> dict[str, float]:
    async with aiohttp.ClientSession() as http, http.get(f"{client.url}/metrics") as reply:
        assert reply.status == 200
        assert reply.content_type == "text/plain"
        families = text_string_to_metric_families(await reply.text())
        samples = [sample for family in families for sample in family.samples]
    return {" ".join([s.name.removeprefix("tiermesh_"), *s.labels.values()]): s.value for s in samples}


async def test_any_node_tells_how_all_are(mesh: Mesh) -> None:
    a, b = await mesh.start("a"), await mesh.start("b")
    for client in (a, b):
        await cluster_where(client, all_up(2))
    report = await a.mesh_health()
    assert (report.node, [node.name for node in report.nodes]) == ("a", ["a", "b"])
    for node in report.nodes:
        assert node.now is not None
        assert node.now.memory_bytes is not None
        assert node.now.process is not None
        assert (node.problem, node.history) == (None, [])
    assert report.nodes[0].round_trip_ms == 0.0
    assert (report.nodes[1].round_trip_ms or 0.0) > 0.0
    assert [node.name for node in (await b.mesh_health()).nodes] == ["b", "a"]


async def test_every_node_remembers_its_looks(mesh: Mesh) -> None:
    a, b = await mesh.start("a"), await mesh.start("b")
    for client in (a, b):
        await cluster_where(client, lambda r: [n.health.score is not None for n in r.nodes] == [True, True])
    report = await a.mesh_health(history=True)
    for node in report.nodes:
        assert node.now is not None
        assert node.history
        assert node.history[-1].at <= node.now.at


async def test_a_node_that_is_gone_is_named_with_the_reason(mesh: Mesh) -> None:
    a, _ = await mesh.start("a"), await mesh.start("b")
    await cluster_where(a, all_up(2))
    await mesh.stop("b")
    await cluster_where(a, all_up(1))
    report = await a.mesh_health()
    own, gone = report.nodes
    assert own.now is not None
    assert (gone.name, gone.state, gone.health, gone.problem, gone.now) == ("b", "down", "unknown", "it is down", None)
    assert report.level in ("warning", "critical")


async def test_the_view_tells_health_of_all(mesh: Mesh) -> None:
    a, _ = await mesh.start("a"), await mesh.start("b")
    report = await cluster_where(a, lambda r: [n.health.score is not None for n in r.nodes] == [True, True])
    assert all(node.health.state != "unknown" for node in report.nodes)


async def test_requests_are_summed_up_over_all_nodes_that_carried_them(mesh: Mesh) -> None:
    async with FakeOpenAI("far") as fake:
        a, b = await mesh.start("a"), await mesh.start("b", fake.url)
        for client in (a, b):
            await cluster_where(client, all_up(2, models=1))
        await a.complete("hello")
        await b.complete("hello")
        stream = b.stream("hello")
        assert "".join([piece async for piece in stream]) == "far: hello"
        for client in (a, b):
            report = await client.metrics()
            assert report.missing == {}
            assert (report.cluster.requests, report.cluster.succeeded, report.cluster.success_rate) == (3, 3, 1.0)
            desk, worker = report.nodes
            assert (desk.name, desk.requests, desk.success_rate, desk.last_request) == ("a", 0, None, None)
            assert (worker.name, worker.requests, worker.success_rate) == ("b", 3, 1.0)
            assert (worker.latency_ms or 0) > 0
            assert (worker.first_token_ms or 0) > 0
            assert (worker.last_request or "").startswith("20")
            assert worker.tokens > 0
        said = await scrape(a)
        assert said["requests_total /api/complete fake-model b ok"] == 1
        assert said["members up"] == 2
        assert said["requests_active"] == 0


async def test_counts_that_can_not_be_had_are_named(mesh: Mesh) -> None:
    a, _ = await mesh.start("a"), await mesh.start("b")
    await cluster_where(a, all_up(2))
    await mesh.stop("b")
    await cluster_where(a, all_up(1))
    assert (await a.metrics()).missing == {"b": "it is down"}


@pytest.mark.parametrize("path", ["/metrics", "/api/metrics", "/api/health"])
async def test_a_token_is_demanded(tmp_path: Path, path: str) -> None:
    async with running(tmp_path, token="secret") as mesh:
        a = await mesh.start("a")
        async with aiohttp.ClientSession() as http, http.get(a.url + path) as reply:
            assert reply.status == 401
        assert isinstance(await a.mesh_health(), MeshHealthReport)
        with pytest.raises(Unauthenticated):
            async with RemoteClient(a.url, token="wrong") as stranger:
                await stranger.metrics()


async def test_what_fails_is_counted_as_it_ended(mesh: Mesh) -> None:
    async with FakeOpenAI("far", "good", "good+break") as fake:
        a = await mesh.start("a", fake.url)
        await cluster_where(a, all_up(1, models=2))
        with pytest.raises(UnknownModel):
            await a.complete("hello", model="nosuch")
        with pytest.raises(EngineFailed):
            async for _ in a.stream("hello", model="good+break"):
                pass
        said = await scrape(a)
        assert said["requests_total /api/complete none none refused"] == 1
        assert said["requests_total /api/complete good+break a failed"] == 1
        assert said["attempts_total good+break a failed"] == 1
        report = await a.metrics()
        assert (report.cluster.requests, report.cluster.succeeded, report.cluster.failed) == (2, 1, 1)
        assert (report.nodes[0].requests, report.nodes[0].failed, report.nodes[0].success_rate) == (1, 1, 0.0)


async def test_a_client_that_leaves_is_nobodys_failure(mesh: Mesh) -> None:
    async with FakeOpenAI("far", "m+hang") as fake:
        a = await mesh.start("a", fake.url)
        await cluster_where(a, all_up(1, models=1))
        asked = asyncio.ensure_future(a.complete("hello"))
        await fake.wait_until("started")
        asked.cancel()
        await fake.wait_until("abandoned")
        async with asyncio.timeout(LIMIT_S):
            while (await a.metrics()).cluster.requests == 0:
                await asyncio.sleep(0.01)
        said = await scrape(a)
        assert said["requests_total /api/complete m+hang a cancelled"] == 1
        assert said["attempts_total m+hang a abandoned"] == 1
        assert (await a.metrics()).cluster.success_rate is None
