"""A mesh without elections: real HTTP, real transport, real engines, and a view that the test sets itself."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from aiohttp import web
from tests.openai_fake import FakeOpenAI

from tiermesh.adapters.engines import Engine
from tiermesh.adapters.engines.openai_server import OpenAIServer
from tiermesh.adapters.passport import Passport
from tiermesh.adapters.peers import Peers
from tiermesh.config import PolicyDocument
from tiermesh.daemon.api import Context, make_app
from tiermesh.daemon.gateway import Gateway
from tiermesh.types import (
    Address,
    Ballot,
    Load,
    Member,
    MemberState,
    Model,
    NodeId,
    Policy,
    SessionId,
    Status,
    Tier,
    View,
)

MAX_BODY_BYTES = 2 * 1024 * 1024
WALL = 1_800_000_000.0


class Deaf:
    """Hears what the transport tells and does nothing about it."""

    def on_message(self, sender: NodeId, session: SessionId, payload: Mapping[str, object]) -> None: ...
    def on_lost(self, peer: NodeId, session: SessionId) -> None: ...
    def on_refused(self, target: NodeId | Address, *, known: bool) -> None: ...
    def on_identified(self, address: Address, node: NodeId) -> None: ...
    def on_twin(self, session: SessionId) -> None: ...


@dataclass
class StillNode:
    """One node; `url` is its public address, `fake` the server behind its engine, if it has one."""

    name: str
    id: NodeId
    passport: Passport
    fake: FakeOpenAI | None
    gateway: Gateway
    engines: dict[str, Engine]
    url: str = ""
    draining: bool = False
    runner: web.AppRunner | None = None

    @property
    def address(self) -> Address:
        return Address(self.url.removeprefix("http://"))

    async def stop_serving(self) -> None:
        assert self.runner is not None
        await self.runner.cleanup()


@dataclass
class StillMesh:
    """All nodes by name, and the one view that they share."""

    http: aiohttp.ClientSession
    cluster: str
    token: str | None = None
    nodes: dict[str, StillNode] = field(default_factory=dict)
    view: View = field(default_factory=View)

    def set_view(self, view: View) -> None:
        self.view = view
        for node in self.nodes.values():
            node.gateway.view_changed(view)

    def mark(self, name: str, state: MemberState, /, **status: Any) -> None:
        """Publish a view in which `name` is in `state`; `status` replaces fields of its status."""
        node = self.nodes[name].id
        member = self.view.members[node]
        down_since = WALL - 5 if state == "down" else None
        member = replace(member, state=state, down_since=down_since, status=replace(member.status, **status))
        self.set_view(replace(self.view, version=self.view.version + 1, members={**self.view.members, node: member}))

    def set_policy(self, body: Mapping[str, object]) -> Policy:
        """A new policy, as a coordinator would publish it."""
        document = PolicyDocument.parse(body)
        policy = Policy(self.view.ballot, self.view.policy.version + 1, document.to_body())
        self.set_view(replace(self.view, policy=policy))
        return policy

    async def post(self, node: str, path: str, body: object, **options: Any) -> tuple[int, Any, Mapping[str, str]]:
        """Status, JSON and headers of one answer."""
        async with self.http.post(self.nodes[node].url + path, json=body, **options) as reply:
            return reply.status, await reply.json(), reply.headers

    async def get(self, node: str, path: str, **options: Any) -> tuple[int, Any, Mapping[str, str]]:
        async with self.http.get(self.nodes[node].url + path, **options) as reply:
            return reply.status, await reply.json(), reply.headers


@asynccontextmanager
async def still_mesh(
    tiers: Mapping[str, Tier | None],
    models: Mapping[str, tuple[str, ...]],
    *,
    token: str | None = None,
    gateway_options: Mapping[str, Any] | None = None,
) -> AsyncIterator[StillMesh]:
    """Nodes `tiers` (name to tier; None: no engine), each with a fake server that has `models[name]`.

    The first node coordinates. All are up, idle, and equally near.
    """
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        mesh = StillMesh(http, f"test-{secrets.token_hex(4)}", token)
        for name, tier in tiers.items():
            await _add(mesh, stack, name, tier, models.get(name, ()), dict(gateway_options or {}))
        members = {
            node.id: Member(node.id, node.passport.session, _status(node, tiers[name]), number)
            for number, (name, node) in enumerate(mesh.nodes.items())
        }
        first = next(iter(mesh.nodes.values())).id
        mesh.set_view(View(Ballot(1, first), 1, first, members))
        yield mesh


async def _add(
    mesh: StillMesh,
    stack: AsyncExitStack,
    name: str,
    tier: Tier | None,
    models: tuple[str, ...],
    options: dict[str, Any],
) -> None:
    passport = Passport(mesh.cluster, NodeId(secrets.token_hex(16)), SessionId("0000000000001-00000000"), mesh.token)
    peers = Peers(passport, Deaf())
    await peers.open()
    stack.push_async_callback(peers.close)
    engines: dict[str, Engine] = {}
    fake = None
    if tier is not None:
        fake = await stack.enter_async_context(FakeOpenAI(name, *models))
        ready = asyncio.Event()
        engine = OpenAIServer(name="fake", kind="openai", url=fake.url, tier=tier, on_change=ready.set)
        await engine.start()
        stack.push_async_callback(engine.close)
        async with asyncio.timeout(5):
            await ready.wait()
        engines["fake"] = engine
    gateway = Gateway(me=passport.node_id, engines=lambda: engines, view=lambda: mesh.view, peers=peers, **options)
    node = mesh.nodes[name] = StillNode(name, passport.node_id, passport, fake, gateway, engines)

    async def apply(body: Mapping[str, object]) -> Policy:
        return mesh.set_policy(body)

    context = Context(
        passport=passport,
        name=name,
        version="0.0.test",
        host_names=frozenset({"my-host"}),
        gateway=gateway,
        engines=lambda: engines,
        view=lambda: mesh.view,
        wall=lambda: WALL,
        policy=lambda: mesh.view.policy,
        apply_policy=apply,
        publish_policy=apply,
        draining=lambda: node.draining,
    )
    app = make_app(context, max_body_bytes=MAX_BODY_BYTES)
    node.runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await node.runner.setup()
    stack.push_async_callback(node.runner.cleanup)
    await web.TCPSite(node.runner, "127.0.0.1", 0).start()
    node.url = f"http://127.0.0.1:{node.runner.addresses[0][1]}"


def _status(node: StillNode, tier: Tier | None) -> Status:
    models: tuple[Model, ...] = tuple(model for engine in node.engines.values() for model in engine.models)
    return Status(
        name=node.name,
        addresses=(node.address,),
        tier=tier,
        models=models,
        engines=tuple(replace(engine.info, state="ready") for engine in node.engines.values()),
        load=Load(0, 4 if node.engines else 0, 0),
        latency_ms=1.0,
        version="0.0.test",
    )


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait for something that no event tells of."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
