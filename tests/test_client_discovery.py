"""Finding a node by mDNS, on the loopback interface alone."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from tests.mesh_fake import FakeMesh
from zeroconf import IPVersion
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from tiermesh import RemoteClient, SyncClient
from tiermesh.client.discovery import SERVICE
from tiermesh.errors import Unavailable

LOOPBACK = "127.0.0.1"


@pytest.fixture
def mesh() -> Iterator[FakeMesh]:
    with FakeMesh() as fake:
        fake.node_id = secrets.token_hex(16)
        yield fake


@asynccontextmanager
async def announced(cluster: str, node_id: str, *addresses: str, port: int) -> AsyncIterator[None]:
    zeroconf = AsyncZeroconf(interfaces=[LOOPBACK], ip_version=IPVersion.V4Only)
    info = AsyncServiceInfo(
        SERVICE,
        f"{node_id}.{SERVICE}",
        port=port,
        properties={"id": node_id, "cluster": cluster},
        server=f"{node_id}.local.",
        parsed_addresses=list(addresses),
    )
    try:
        repeats = await zeroconf.async_register_service(info, cooperating_responders=True)
        yield
        await repeats
        await (await zeroconf.async_unregister_service(info))
    finally:
        await zeroconf.async_close()


def port_of(mesh: FakeMesh) -> int:
    return int(mesh.url.rpartition(":")[2])


async def test_the_node_of_the_cluster_that_answers(mesh: FakeMesh) -> None:
    """Others are announced beside it: one of another cluster, one whose address leads elsewhere."""
    cluster = f"test-{secrets.token_hex(4)}"
    async with (
        announced("test-other", secrets.token_hex(16), LOOPBACK, port=port_of(mesh)),
        announced(cluster, secrets.token_hex(16), LOOPBACK, port=port_of(mesh)),
        announced(cluster, mesh.node_id, "127.0.0.9", LOOPBACK, port=port_of(mesh)),
    ):
        found = await RemoteClient.discover(cluster=cluster, interface=LOOPBACK, search_s=5)
    async with found as client:
        assert (await client.health()).node_id == mesh.node_id


def test_discovery_without_await(mesh: FakeMesh) -> None:
    cluster = f"test-{secrets.token_hex(4)}"
    ready, over = threading.Event(), threading.Event()

    async def announce() -> None:
        async with announced(cluster, mesh.node_id, LOOPBACK, port=port_of(mesh)):
            ready.set()
            await asyncio.to_thread(over.wait, 20)

    thread = threading.Thread(target=asyncio.run, args=(announce(),))
    thread.start()
    try:
        assert ready.wait(10)
        with SyncClient.discover(cluster=cluster, interface=LOOPBACK, search_s=5) as client:
            assert client.health().node_id == mesh.node_id
    finally:
        over.set()
        thread.join()


async def test_nobody_is_found() -> None:
    cluster = f"test-{secrets.token_hex(4)}"
    with pytest.raises(Unavailable, match=f"no node of cluster '{cluster}' within 0.3 s"):
        await RemoteClient.discover(cluster=cluster, interface=LOOPBACK, search_s=0.3)
