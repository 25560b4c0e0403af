"""Who is let in: by token, or, in an open mesh, by where a request comes from; and peers by what they show besides."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest
from tests.daemon.still_mesh import StillMesh, still_mesh

from tiermesh.adapters.passport import Passport
from tiermesh.daemon.api import trust
from tiermesh.errors import Forbidden
from tiermesh.types import NodeId, SessionId

HELLO = {"messages": [{"role": "user", "content": "hello"}]}
TOKEN = "correct-horse"


@pytest.fixture
async def open_mesh() -> AsyncIterator[StillMesh]:
    async with still_mesh({"desk": None, "one": 1}, {"one": ("m",)}) as mesh:
        yield mesh


@pytest.fixture
async def closed_mesh() -> AsyncIterator[StillMesh]:
    async with still_mesh({"desk": None, "one": 1}, {"one": ("m",)}, token=TOKEN) as mesh:
        yield mesh


@pytest.mark.parametrize(
    ("remote", "served"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("10.1.2.3", True),
        ("172.31.0.1", True),
        ("172.32.0.1", False),
        ("192.168.178.20", True),
        ("169.254.7.7", True),
        ("fe80::1%eth0", True),
        ("fd12:3456::1", True),
        ("::ffff:192.168.1.1", True),
        ("::ffff:8.8.8.8", False),
        ("8.8.8.8", False),
        ("100.64.0.1", False),
        ("2001:4860:4860::8888", False),
        ("", False),
        (None, False),
    ],
)
def test_an_open_mesh_serves_private_addresses_only(remote: str | None, served: bool) -> None:
    if served:
        trust._check_source(remote)
    else:
        with pytest.raises(Forbidden):
            trust._check_source(remote)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("192.168.1.5:8000", 200),
        ("[::1]:{port}", 200),
        ("localhost:{port}", 200),
        ("LOCALHOST", 200),
        ("gaming-pc.local:8000", 200),
        ("server.lan", 200),
        ("nas.home.arpa.", 200),
        ("my-host:8000", 200),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("local", 403),
        ("evil.example/.local", 403),
        ("[::1", 403),
    ],
)
async def test_an_open_mesh_answers_to_names_that_no_stranger_can_own(
    open_mesh: StillMesh, host: str, status: int
) -> None:
    node = open_mesh.nodes["desk"]
    host = host.format(port=node.address.partition(":")[2])
    found, body, _ = await open_mesh.get("desk", "/health", headers={"Host": host})
    assert found == status
    if status == 403:
        assert body["error"]["type"] == "forbidden"


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("{own}", 200),
        (None, 200),
        ("http://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1:1", 403),
        ("", 403),
        ("http://[", 403),
    ],
)
async def test_an_open_mesh_serves_no_strangers_web_page(open_mesh: StillMesh, origin: str | None, status: int) -> None:
    headers = {} if origin is None else {"Origin": origin.format(own=open_mesh.nodes["desk"].url)}
    assert (await open_mesh.post("desk", "/api/complete", HELLO, headers=headers))[0] == status


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x"])
@pytest.mark.parametrize("route", ["/api/cluster", "/v1/models", "/api/config", "/nowhere", "/mesh/v1/generate"])
async def test_a_token_is_demanded_from_everyone(closed_mesh: StillMesh, route: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    status, body, answer_headers = await closed_mesh.get("desk", route, headers=headers)
    assert (status, answer_headers["WWW-Authenticate"]) == (401, "Bearer")
    assert "token" in body["error"]["message"]
    assert TOKEN not in body["error"]["message"]


async def test_the_right_token_opens_everything_from_everywhere(closed_mesh: StillMesh) -> None:
    headers = {"Authorization": f"bearer {TOKEN}", "Host": "mesh.example.com", "Origin": "https://chat.example.com"}
    status, body, _ = await closed_mesh.post("desk", "/api/complete", HELLO, headers=headers)
    assert (status, body["node"]) == (200, "one"), "and nodes show it to one another"


async def test_health_needs_no_token(closed_mesh: StillMesh) -> None:
    assert (await closed_mesh.get("desk", "/health"))[0] == 200


def peer(cluster: str, *, node: str = "", token: str | None = None) -> dict[str, str]:
    passport = Passport(cluster, NodeId(node or secrets.token_hex(16)), SessionId("0000000000002-00000000"), token)
    return passport.headers


ASK = {"model": "m", "messages": HELLO["messages"], "engine": "fake"}


async def test_a_peer_of_this_cluster_is_served(open_mesh: StillMesh) -> None:
    status, body, headers = await open_mesh.post("one", "/mesh/v1/generate", ASK, headers=peer(open_mesh.cluster))
    assert (status, body["choices"][0]["message"]["content"]) == (200, "one: hello")
    assert headers.items() >= open_mesh.nodes["one"].passport.stamp.items()


async def test_other_clusters_versions_and_strangers_are_told_why_not(open_mesh: StillMesh) -> None:
    good = peer(open_mesh.cluster)
    cases = [
        ({}, 403, "forbidden"),
        (peer("elsewhere"), 403, "wrong_cluster"),
        (good | {"X-Mesh-Protocol": "0", "X-Mesh-Protocol-Minimum": "0"}, 426, "incompatible_version"),
        (good | {"X-Mesh-Protocol": "99", "X-Mesh-Protocol-Minimum": "98"}, 426, "incompatible_version"),
        (good | {"X-Mesh-Protocol": "new"}, 403, "forbidden"),
        (peer(open_mesh.cluster, node=open_mesh.nodes["one"].id), 409, "duplicate_node"),
    ]
    for headers, expected, kind in cases:
        status, body, answer_headers = await open_mesh.post("one", "/mesh/v1/generate", ASK, headers=headers)
        assert (status, body["error"]["type"]) == (expected, kind), headers
        assert answer_headers.items() >= open_mesh.nodes["one"].passport.stamp.items(), "they learn whom they met"


async def test_a_newer_peer_that_still_speaks_our_version_is_served(open_mesh: StillMesh) -> None:
    headers = peer(open_mesh.cluster) | {"X-Mesh-Protocol": "99"}
    assert (await open_mesh.post("one", "/mesh/v1/generate", ASK, headers=headers))[0] == 200


@pytest.mark.parametrize("deadline", ["soon", "-1", "0", "nan", "inf"])
async def test_a_peers_deadline_must_make_sense(open_mesh: StillMesh, deadline: str) -> None:
    headers = peer(open_mesh.cluster) | {"X-Mesh-Deadline": deadline}
    status, body, _ = await open_mesh.post("one", "/mesh/v1/generate", ASK, headers=headers)
    assert (status, body["error"]["param"]) == (400, "X-Mesh-Deadline")
