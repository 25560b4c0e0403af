"""Links between daemons, over real sockets on the loopback interface."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from tiermesh.adapters import peers, prompt
from tiermesh.adapters.passport import Passport, Stamp, read_stamp
from tiermesh.adapters.peers import Peers
from tiermesh.core.messages import PROTOCOL
from tiermesh.errors import (
    DuplicateNode,
    EngineFailed,
    Forbidden,
    IncompatibleVersion,
    InvalidInput,
    TiermeshError,
    Unavailable,
    Unreachable,
    WrongCluster,
)
from tiermesh.types import Address, NodeId, SessionId


class Told:
    """Everything the transport said to its owner, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []
        self._changed = asyncio.Event()

    def on_message(self, sender: NodeId, session: SessionId, payload: Mapping[str, object]) -> None:
        if payload.get("poison"):
            raise ValueError("poisoned")
        self._add("message", sender, session, dict(payload))

    def on_lost(self, peer: NodeId, session: SessionId) -> None:
        self._add("lost", peer, session)

    def on_refused(self, target: NodeId | Address, *, known: bool) -> None:
        self._add("refused", target, known)

    def on_identified(self, address: Address, node: NodeId) -> None:
        self._add("identified", address, node)

    def on_twin(self, session: SessionId) -> None:
        self._add("twin", session)

    def _add(self, *event: object) -> None:
        self.events.append(event)
        self._changed.set()

    async def until(self, wanted: Callable[[tuple[object, ...]], bool]) -> tuple[object, ...]:
        async with asyncio.timeout(10):
            while True:
                for event in self.events:
                    if wanted(event):
                        return event
                self._changed.clear()
                await self._changed.wait()

    async def until_kind(self, kind: str) -> tuple[object, ...]:
        return await self.until(lambda event: event[0] == kind)


class End:
    """One daemon's transport, and where it listens."""

    def __init__(self, passport: Passport) -> None:
        self.passport = passport
        self.told = Told()
        self.peers = Peers(passport, self.told)
        self.address = Address("")
        self.asked_over: list[object] = []
        """The connection of each prompt."""

    @property
    def id(self) -> NodeId:
        return self.passport.node_id

    def payloads(self) -> list[object]:
        return [event[3] for event in self.told.events if event[0] == "message"]


def new_session() -> str:
    return f"{secrets.randbelow(10**13):013d}-{secrets.token_hex(4)}"


@asynccontextmanager
async def end(cluster: str = "home", node_id: str | None = None, session: str | None = None) -> AsyncIterator[End]:
    passport = Passport(cluster, NodeId(node_id or secrets.token_hex(16)), SessionId(session or new_session()))
    one = End(passport)

    @web.middleware
    async def errors(request: web.Request, handler: Callable[[web.Request], object]) -> web.StreamResponse:
        try:
            passport.judge(read_stamp(request.headers))
            return await handler(request)  # type: ignore[misc,no-any-return]
        except TiermeshError as error:
            return web.json_response({"error": str(error)}, status=error.http_status)

    async def stamp(_: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(passport.stamp)

    async def question(request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        wrong = {"error": {"message": "n: must be 1", "param": "n"}}
        return web.json_response(asked if asked == {"n": 1} else wrong, status=200 if asked == {"n": 1} else 400)

    async def generate(request: web.Request) -> web.StreamResponse:
        one.asked_over.append(request.transport)
        response = web.StreamResponse()
        await response.prepare(request)
        asked = await request.json()
        if asked.get("stream"):
            await response.write(b"data: {}\n\n")
            await response.write(b"data: [DONE]\n\n")
            await asyncio.sleep(0.02)  # the end of the body comes in a packet of its own
            return response
        await response.write(b"one ")
        if asked.get("break"):
            assert request.transport is not None
            request.transport.abort()
        await response.write(b"two")
        return response

    app = web.Application(middlewares=[errors])
    app.on_response_prepare.append(stamp)
    app.router.add_get("/mesh/v1/link", one.peers.accept)
    app.router.add_post("/mesh/v1/question", question)
    app.router.add_post("/mesh/v1/generate", generate)
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    one.address = Address(f"127.0.0.1:{runner.addresses[0][1]}")
    await one.peers.open()
    try:
        yield one
    finally:
        await one.peers.close()
        await runner.cleanup()


@asynccontextmanager
async def raw_link(a: End, b: End) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A link on which `a`'s daemon says what the test wants it to."""
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"http://{b.address}/mesh/v1/link", headers=a.passport.headers) as ws,
    ):
        yield ws


@contextmanager
def silent() -> Iterator[Address]:
    """An address where connections open and nothing is ever said."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield Address(f"127.0.0.1:{listener.getsockname()[1]}")


def nowhere() -> Address:
    """An address on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Address(f"127.0.0.1:{probe.getsockname()[1]}")


async def test_a_message_arrives_with_its_sender_and_is_answered_over_the_same_link() -> None:
    async with end() as a, end() as b:
        a.peers.send(b.id, (b.address,), {"n": 1})
        a.peers.send(b.id, (b.address,), {"n": 2})
        await b.told.until(lambda e: e[0] == "message" and e[3] == {"n": 2})
        assert b.told.events[0] == ("message", a.id, a.passport.session, {"n": 1})
        b.peers.send(a.id, (), {"answer": True})
        assert (await a.told.until_kind("message"))[1] == b.id


async def test_wrong_addresses_cost_nothing() -> None:
    async with end() as a, end() as b, end() as other:
        with silent() as mute:
            a.peers.send(b.id, (nowhere(), other.address, mute, b.address), {"n": 1})
            await b.told.until_kind("message")
        assert ("identified", b.address, b.id) in a.told.events
        assert other.payloads() == []


async def test_a_stranger_is_identified_and_then_told() -> None:
    async with end() as a, end() as b:
        a.peers.reach(b.address, {"n": 1})
        await b.told.until_kind("message")
        assert a.told.events == [("identified", b.address, b.id)]


async def test_a_refused_connection_is_an_answer_but_silence_is_none() -> None:
    async with end() as a:
        unknown, known = nowhere(), NodeId("b" * 32)
        a.peers.reach(unknown, {})
        assert await a.told.until_kind("refused") == ("refused", unknown, False)
        a.peers.send(known, (nowhere(), nowhere()), {})
        assert await a.told.until(lambda e: e[1] == known) == ("refused", known, True)


async def test_the_end_of_a_peer_is_noticed_at_once_and_its_quiet_end_too() -> None:
    async with end() as a:
        async with end() as b:
            a.peers.send(b.id, (b.address,), {"n": 1})
            await b.told.until_kind("message")
        assert await a.told.until_kind("lost") == ("lost", b.id, b.passport.session)
        assert b.told.events[-1][0] == "message", "who closes does not lose"


async def test_clusters_and_versions_do_not_mix() -> None:
    async with end("home") as a, end("work") as b, end("home") as c:
        a.peers.reach(b.address, {"n": 1})
        a.peers.reach(c.address, {"n": 1})
        await c.told.until_kind("message")
        assert b.told.events == []
        assert a.told.events == [("identified", c.address, c.id)]


@pytest.mark.parametrize(
    ("status", "speaks", "reason"),
    [
        (426, "99", "update the older one"),
        (401, "1", "set the same MESH_TOKEN"),
        (403, "1", "join it by its IP address"),
        (500, "1", "HTTP 500"),
    ],
)
async def test_who_is_turned_away_says_why(
    status: int, speaks: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = Passport("home", NodeId("b" * 32), SessionId(new_session())).stamp
    stamp = other | {"X-Mesh-Protocol": speaks, "X-Mesh-Protocol-Minimum": speaks}

    async def refuse(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, headers=stamp)

    async with end() as a, RawTestServer(refuse) as server:
        a.peers.reach(Address(f"127.0.0.1:{server.port}"), {})
        async with asyncio.timeout(10):
            while "turned this node away" not in caplog.text:
                await asyncio.sleep(0.005)
    assert reason in caplog.text


async def test_an_address_to_join_at_which_nobody_answers_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        nobody = Address(f"127.0.0.1:{sock.getsockname()[1]}")
        async with end() as a, asyncio.timeout(10):
            for times in (1, 2):
                a.peers.reach(nobody, {})
                while len(a.told.events) < times:
                    await asyncio.sleep(0.005)
    assert caplog.messages == [f"no node answers at {nobody} (connection refused); it is tried again and again"]


async def test_an_address_of_another_mesh_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async with end() as a, end(cluster="other") as b:
        a.peers.reach(b.address, {})
        async with asyncio.timeout(10):
            while "is of cluster 'other'" not in caplog.text:
                await asyncio.sleep(0.005)


async def test_a_twin_is_told_apart_from_oneself() -> None:
    async with end(node_id="a" * 32) as a, end(node_id="a" * 32) as twin:
        a.peers.reach(twin.address, {})
        assert await a.told.until_kind("twin") == ("twin", twin.passport.session)
        a.peers.reach(a.address, {})
        await a.told.until(lambda e: e == ("identified", a.address, a.id))
        assert sum(e[0] == "twin" for e in a.told.events) == 1


async def test_two_runs_under_one_id_are_answered_apart() -> None:
    async with end() as a, end(node_id="b" * 32) as old, end(node_id="b" * 32) as young:
        for run in (old, young):
            run.peers.send(a.id, (a.address,), {"from": run.passport.session})
            await a.told.until(lambda e, run=run: e[0] == "message" and e[2] == run.passport.session)  # type: ignore[misc]
        a.peers.send(old.id, (), {"n": 1}, old.passport.session)
        a.peers.send(old.id, (), {"n": 2}, young.passport.session)
        await old.told.until_kind("message")
        await young.told.until_kind("message")
        assert (old.payloads(), young.payloads()) == ([{"n": 1}], [{"n": 2}])
        assert a.peers.sessions(old.id) == {old.passport.session, young.passport.session}


async def test_a_message_that_can_not_be_read_does_not_end_the_link() -> None:
    async with end() as a, end() as b:
        a.peers.send(b.id, (b.address,), {"poison": True})
        a.peers.send(b.id, (b.address,), {"n": 2})
        await b.told.until_kind("message")
        assert b.payloads() == [{"n": 2}]


@pytest.mark.parametrize("junk", ["[", "[" * 100_000, '{"a":' * 100_000, "1", '"text"', ""])
async def test_garbage_does_not_end_the_link(junk: str, caplog: pytest.LogCaptureFixture) -> None:
    async with end() as a, end() as b, raw_link(a, b) as ws:
        await ws.send_str(junk)
        await ws.send_bytes(b"no text")
        await ws.send_json({"n": 2})
        await b.told.until_kind("message")
        assert b.payloads() == [{"n": 2}]
    assert "can't be read" in caplog.text


async def test_a_message_beyond_all_measure_ends_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "LONGEST_MESSAGE_BYTES", 1000)
    async with end() as a, end() as b, raw_link(a, b) as ws:
        await ws.send_json({"n": "x" * 1000})
        assert (await ws.receive(timeout=10)).type is aiohttp.WSMsgType.CLOSE
        assert ws.close_code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
        assert await b.told.until_kind("lost") == ("lost", a.id, a.passport.session)
        assert b.payloads() == []


async def test_an_address_that_is_none_costs_nothing_either() -> None:
    none = (Address("a" * 64 + ".local:1"), Address("host:port"), Address(""), Address("[::1"), Address("h:99999"))
    async with end() as a, end() as b:
        a.peers.send(b.id, (*none, b.address), {"n": 1})
        await b.told.until_kind("message")
        assert await a.peers.ask(b.id, (*none, b.address), "/mesh/v1/question", {"n": 1}) == {"n": 1}
        async with a.peers.generate(b.id, (*none, b.address), {}, request_id="r", deadline_s=5) as reply:
            assert reply.status == 200


async def test_a_prompt_travels_beside_the_links() -> None:
    async with end() as a, end() as b:
        async with a.peers.generate(b.id, (nowhere(), b.address), {}, request_id="r", deadline_s=5) as reply:
            assert b"".join([chunk async for chunk in reply.chunks]) == b"one two"
        with pytest.raises(EngineFailed, match="can't be reached"):
            async with a.peers.generate(b.id, (nowhere(),), {}, request_id="r", deadline_s=5):
                pass
        with pytest.raises(EngineFailed, match="another node answers"):
            async with a.peers.generate(NodeId("c" * 32), (b.address,), {}, request_id="r", deadline_s=5):
                pass


async def test_the_connection_of_a_stream_that_has_said_all_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt, "END_S", 5.0)
    async with end() as a, end() as b:
        for _ in range(3):
            async with a.peers.generate(b.id, (b.address,), {"stream": True}, request_id="r", deadline_s=5) as reply:
                said = b""
                while not said.endswith(b"[DONE]\n\n"):  # as whoever reads events: what comes after is not waited for
                    said += await anext(reply.chunks)
        assert len(b.asked_over) == 3
        assert len(set(b.asked_over)) == 1


async def test_a_broken_answer_is_an_error_and_no_short_answer() -> None:
    async with (
        end() as a,
        end() as b,
        a.peers.generate(b.id, (b.address,), {"break": True}, request_id="r", deadline_s=5) as reply,
    ):
        with pytest.raises(EngineFailed, match="broke off"):
            _ = [chunk async for chunk in reply.chunks]


async def test_a_small_question_is_answered_refused_or_unanswerable() -> None:
    async with end() as a, end() as b:
        at = (nowhere(), b.address)
        assert await a.peers.ask(b.id, at, "/mesh/v1/question", {"n": 1}) == {"n": 1}
        with pytest.raises(InvalidInput, match="n: must be 1") as caught:
            await a.peers.ask(b.id, at, "/mesh/v1/question", {"n": 2})
        assert caught.value.param == "n"
        with pytest.raises(Unavailable, match="another node answers"):
            await a.peers.ask(NodeId("c" * 32), (b.address,), "/mesh/v1/question", {"n": 1})
        with pytest.raises(Unavailable, match="can't be reached"):
            await a.peers.ask(b.id, (nowhere(),), "/mesh/v1/question", {"n": 1})


async def test_who_has_left_reaches_nobody_and_knows_why() -> None:
    """As a node that ends does, which has something left to tell."""
    async with end() as a, end() as b:
        await a.peers.close()
        with pytest.raises(Unreachable, match="has left"):
            await a.peers.ask(b.id, (b.address,), "/mesh/v1/question", {"n": 1})


MINE = Passport("home", NodeId("a" * 32), SessionId("s"))


@pytest.mark.parametrize(
    ("stamp", "error"),
    [
        (Stamp(PROTOCOL, PROTOCOL, "work", NodeId("b"), SessionId("t")), WrongCluster),
        (Stamp(PROTOCOL + 1, PROTOCOL + 1, "home", NodeId("b"), SessionId("t")), IncompatibleVersion),
        (Stamp(0, 0, "home", NodeId("b"), SessionId("t")), IncompatibleVersion),
        (Stamp(PROTOCOL, PROTOCOL, "home", NodeId("a" * 32), SessionId("t")), DuplicateNode),
    ],
)
def test_who_is_turned_away(stamp: Stamp, error: type[TiermeshError]) -> None:
    with pytest.raises(error):
        MINE.judge(stamp)


def test_a_newer_peer_that_still_understands_us_is_welcome() -> None:
    MINE.judge(Stamp(PROTOCOL + 1, PROTOCOL, "home", NodeId("b"), SessionId("t")))


def test_a_token_travels_with_requests_alone() -> None:
    passport = Passport("home", NodeId("a"), SessionId("s"), token="secret")
    assert passport.headers["Authorization"] == "Bearer secret"
    assert "Authorization" not in passport.stamp
    assert "secret" not in repr(passport), "and never into a log"


def test_a_stranger_has_no_stamp() -> None:
    with pytest.raises(Forbidden, match="X-Mesh-Protocol"):
        read_stamp({})


@pytest.mark.parametrize(
    ("header", "wrong"),
    [
        ("X-Mesh-Protocol", "new"),
        ("X-Mesh-Protocol", "9" * 5000),
        ("X-Mesh-Peer", ""),
        ("X-Mesh-Peer", "A" * 32),
        ("X-Mesh-Peer", "a" * 31 + "\x1b"),
        ("X-Mesh-Session", "0"),
        ("X-Mesh-Session", "0000000000001-peer"),
    ],
)
def test_a_stamp_that_no_daemon_makes_is_no_stamp(header: str, wrong: str) -> None:
    good = Passport("home", NodeId("b" * 32), SessionId(new_session())).stamp
    assert read_stamp(good).node_id == "b" * 32
    with pytest.raises(Forbidden, match="not a Tiermesh peer"):
        read_stamp(good | {header: wrong})
