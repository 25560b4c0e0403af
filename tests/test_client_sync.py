"""SyncClient: no `await`, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from tests.mesh_fake import FakeMesh

from tiermesh import SyncClient
from tiermesh.errors import EngineFailed, UnknownModel


@pytest.fixture
def mesh() -> Iterator[FakeMesh]:
    with FakeMesh() as fake:
        yield fake


def threads() -> int:
    return sum(thread.name == "tiermesh-client" for thread in threading.enumerate())


def test_a_script(mesh: FakeMesh) -> None:
    with SyncClient(mesh.url) as client:
        assert client.complete("x", temperature=0.0, max_tokens=3).content == "Paris."
        stream = client.stream("x")
        assert list(stream) == ["Par", "is", "."]
        assert stream.result.node == "alpha"
        assert client.cluster().cluster == "test"
        assert client.health().node == client.cluster().nodes[0].name
        assert client.models()[0].id == "fake"
    assert mesh.bodies("/api/complete")[0]["temperature"] == 0.0
    assert threads() == 0


async def test_inside_a_running_loop_as_in_a_notebook(mesh: FakeMesh) -> None:
    with SyncClient(mesh.url) as client:
        assert client.complete("x").content == "Paris."


def test_errors_keep_their_type(mesh: FakeMesh) -> None:
    mesh.failure = (404, {"type": "model_not_found", "message": "no node has it", "param": "model"}, {})
    with SyncClient(mesh.url) as client, pytest.raises(UnknownModel, match="no node has it"):
        client.complete("x", model="nope")


def test_leaving_a_stream_hangs_up(mesh: FakeMesh) -> None:
    mesh.ending = "hang"
    with SyncClient(mesh.url) as client:
        for _ in client.stream("x"):
            break
        assert mesh.hung_up.wait(5)


def test_a_stream_that_breaks(mesh: FakeMesh) -> None:
    mesh.ending = "error"
    with SyncClient(mesh.url) as client, pytest.raises(EngineFailed):
        list(client.stream("x"))


def test_closing_twice_and_without_with(mesh: FakeMesh) -> None:
    client = SyncClient(mesh.url)
    client.health()
    client.close()
    client.close()
    assert threads() == 0
