"""RemoteClient: what was said arrives as it was said, and every failure has its type."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from tests.mesh_fake import FakeMesh

import tiermesh
from tiermesh import RemoteClient
from tiermesh.client import stream
from tiermesh.errors import (
    ContextTooLong,
    DeadlineExceeded,
    EngineFailed,
    Forbidden,
    InvalidInput,
    NotFound,
    TiermeshError,
    Unauthenticated,
    Unavailable,
    UnknownModel,
)
from tiermesh.protocol.complete import Message


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESH_TOKEN", raising=False)


@pytest.fixture
def mesh() -> Iterator[FakeMesh]:
    with FakeMesh() as fake:
        yield fake


async def test_complete_gives_the_answer_and_who_gave_it(mesh: FakeMesh) -> None:
    async with RemoteClient(mesh.url) as client:
        answer = await client.complete("What is the capital of France?")
    assert (answer.content, answer.node, answer.tier, answer.model) == ("Paris.", "alpha", 2, "fake")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    assert mesh.bodies("/api/complete") == [
        {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    ]


async def test_zero_is_zero_and_none_is_not_said(mesh: FakeMesh) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    async with RemoteClient(mesh.url) as client:
        await client.complete(
            "x", model="m", tier=0, temperature=0.0, max_tokens=1, top_p=None, stop=["a"], seed=0, tools=tools
        )
    (body,) = mesh.bodies("/api/complete")
    del body["messages"]
    assert body == {
        "model": "m",
        "tier": 0,
        "temperature": 0.0,
        "max_tokens": 1,
        "stop": ["a"],
        "seed": 0,
        "tools": tools,
    }


async def test_messages_are_texts_mappings_or_typed(mesh: FakeMesh) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said: list[Message | dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        Message(role="assistant", tool_calls=[call]),
        Message(role="tool", content="4", tool_call_id="c1"),
    ]
    async with RemoteClient(mesh.url) as client:
        await client.complete(said)
    assert mesh.bodies("/api/complete")[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
    ]


async def test_a_stream_gives_pieces_and_then_the_whole(mesh: FakeMesh) -> None:
    async with RemoteClient(mesh.url) as client:
        stream = client.stream("x", temperature=0.0)
        with pytest.raises(RuntimeError, match="not been read"):
            _ = stream.result
        pieces = [piece async for piece in stream]
    assert pieces == ["Par", "is", "."]
    assert (stream.result.content, stream.result.node) == ("Paris.", "alpha")
    assert mesh.bodies("/api/complete")[0] | {"messages": 0} == {"messages": 0, "temperature": 0.0, "stream": True}


async def test_a_stream_of_many_small_and_one_large_event(mesh: FakeMesh) -> None:
    mesh.pieces = ["é" * 10, "x" * 300_000, *("y" for _ in range(500))]
    async with RemoteClient(mesh.url) as client, client.stream("x") as stream:
        assert "".join([piece async for piece in stream]) == "".join(mesh.pieces) == stream.result.content


async def test_a_stream_that_breaks_is_an_error_and_never_just_ends(mesh: FakeMesh) -> None:
    async with RemoteClient(mesh.url) as client:
        mesh.ending = "cut"
        with pytest.raises(EngineFailed, match="broke off"):
            _ = [piece async for piece in client.stream("x")]
        mesh.ending = "error"
        with pytest.raises(EngineFailed, match="the engine died"):
            _ = [piece async for piece in client.stream("x")]


async def test_silence_in_a_stream_has_a_limit(mesh: FakeMesh) -> None:
    mesh.ending = "hang"
    async with RemoteClient(mesh.url, timeout_s=0.2) as client:
        with pytest.raises(DeadlineExceeded, match=r"nothing for 0\.2 s"):
            _ = [piece async for piece in client.stream("x")]


async def test_leaving_a_stream_hangs_up(mesh: FakeMesh) -> None:
    mesh.ending = "hang"
    async with RemoteClient(mesh.url) as client, client.stream("x") as stream:
        assert await anext(stream) == "Par"
    assert await asyncio.to_thread(mesh.hung_up.wait, 5)


async def test_cancelling_a_stream_hangs_up(mesh: FakeMesh) -> None:
    mesh.ending = "hang"
    begun = asyncio.Event()

    async def read(client: RemoteClient) -> None:
        async for _ in client.stream("x"):
            begun.set()

    async with RemoteClient(mesh.url) as client:
        reader = asyncio.ensure_future(read(client))
        await begun.wait()
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert await asyncio.to_thread(mesh.hung_up.wait, 5)


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, {"type": "invalid_request", "param": "messages[0].role"}, InvalidInput),
        (400, {"type": "context_length_exceeded"}, ContextTooLong),
        (401, {"type": "unauthenticated"}, Unauthenticated),
        (403, {"type": "forbidden"}, Forbidden),
        (404, {"type": "model_not_found"}, UnknownModel),
        (404, {"type": "not_found"}, NotFound),
        (400, {"type": "invalid_request_error", "code": "context_length_exceeded"}, ContextTooLong),
        (502, {"type": "engine_failed"}, EngineFailed),
        (503, {"type": "unavailable"}, Unavailable),
        (504, {"type": "deadline_exceeded"}, DeadlineExceeded),
        (418, {"type": "of_the_future"}, InvalidInput),
        (503, {"type": "of_the_future"}, Unavailable),
        (500, {"type": "of_the_future"}, TiermeshError),
        (500, {}, TiermeshError),
    ],
)
async def test_an_error_body_becomes_its_error(
    mesh: FakeMesh, status: int, error: dict[str, Any], kind: type[TiermeshError]
) -> None:
    mesh.failure = (status, {"message": "what was wrong", **error}, {"Retry-After": "7"})
    async with RemoteClient(mesh.url) as client:
        for ask in (client.complete("x"), client.stream("x").__anext__(), client.models()):
            with pytest.raises(kind, match="what was wrong") as raised:
                await ask
            assert type(raised.value) is kind
            if isinstance(raised.value, Unavailable):
                assert raised.value.retry_after_s == 7
            if isinstance(raised.value, InvalidInput):
                assert raised.value.param == error.get("param")


async def test_what_is_no_daemon_is_told_apart(mesh: FakeMesh) -> None:
    async with RemoteClient("ftp://x") as client:
        with pytest.raises(InvalidInput, match="is no URL of a node"):
            await client.cluster()
    async with RemoteClient(mesh.url.replace("http:", "https:")) as client:
        with pytest.raises(Unavailable, match=r"no TLS with https://.*A daemon speaks plain http://"):
            await client.cluster()
    mesh.failure = (404, {}, {})
    async with RemoteClient(mesh.url) as client:
        with pytest.raises(NotFound, match="HTTP 404 and no reason given: is it a Tiermesh daemon"):
            await client.cluster()


async def test_nobody_answers() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    async with RemoteClient(url) as client:
        with pytest.raises(Unavailable, match=r"no daemon answers at http://127\.0\.0\.1:\d+: connection refused"):
            await client.health()


async def test_silence_before_the_answer_has_a_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with RemoteClient(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.1) as client:
            with pytest.raises(DeadlineExceeded):
                await client.complete("x")


@pytest.mark.parametrize("url", ["http://", "http://:80", "ht!tp://x y", "http://127.0.0.1:99999"])
async def test_what_is_no_url(url: str) -> None:
    async with RemoteClient(url) as client:
        with pytest.raises(InvalidInput, match="no URL of a node"):
            await client.health()


async def test_the_token_is_shown(mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh.token = "key"
    async with RemoteClient(mesh.url, token="key") as client:
        await client.models()
    async with RemoteClient(mesh.url) as client:
        assert (await client.health()).node == "alpha", "health needs none"
        with pytest.raises(Unauthenticated):
            await client.models()
    monkeypatch.setenv("MESH_TOKEN", "key")
    async with RemoteClient(mesh.url) as client:
        await client.models()


async def test_connections_are_used_again(mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "END_S", 10.0)
    async with RemoteClient(mesh.url) as client:
        for _ in range(5):
            await client.complete("x")
        _ = [piece async for piece in client.stream("x")]
        await client.health()
    assert len(mesh.connections) == 1


async def test_the_other_reports(mesh: FakeMesh) -> None:
    async with RemoteClient(mesh.url) as client:
        report = await client.cluster()
        assert (report.cluster, report.coordinator and report.coordinator.name) == ("test", "alpha")
        assert [model.id for model in await client.models()] == ["fake"]
        assert (await client.set_policy({"routing": {}})).version == 3
        assert (await client.policy()).policy == {"routing": {}}
        assert (await client.diagnose()).node.name == "alpha"


async def test_a_client_must_be_entered() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await RemoteClient().health()


async def test_something_else_answers() -> None:
    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(hello, "127.0.0.1", 0)
    async with server, RemoteClient(f"127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        with pytest.raises(EngineFailed, match="is it a Tiermesh daemon"):
            await client.health()


def test_the_package_offers_the_clients() -> None:
    assert tiermesh.RemoteClient is RemoteClient
    with pytest.raises(AttributeError):
        _ = tiermesh.NoSuchThing


async def test_a_class_that_only_inherits_its_type_is_never_raised(mesh: FakeMesh) -> None:
    class Narrower(InvalidInput):
        """Defined somewhere in this process."""

    mesh.failure = (400, {"message": "what was wrong", "type": "invalid_request_error"}, {})
    async with RemoteClient(mesh.url) as client:
        with pytest.raises(InvalidInput) as raised:
            await client.complete("x")
    assert type(raised.value) is not Narrower
