"""Nodes that serve what was trained: real HTTP and real files, scripted workers, and a view that is always right."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from tests.daemon.still_mesh import Deaf

from tiermesh.adapters.blobs import Blobs
from tiermesh.adapters.fetching import Holder
from tiermesh.adapters.passport import Passport
from tiermesh.adapters.peers import Peers
from tiermesh.adapters.result_shelf import ResultShelf
from tiermesh.adapters.run_copy import folder_manifest
from tiermesh.config import Flags, resolve_options
from tiermesh.daemon.api import Context, make_app
from tiermesh.daemon.api.blobs import register_blobs
from tiermesh.daemon.api.models import register_models
from tiermesh.daemon.copies import Copies
from tiermesh.daemon.engine_room import EngineRoom
from tiermesh.daemon.gateway import Gateway
from tiermesh.daemon.served import Served
from tiermesh.daemon.serving import Serving
from tiermesh.protocol.serving import ORIGIN_FILE, Result
from tiermesh.protocol.ulid import make_ulid
from tiermesh.types import Address, Ballot, Member, MemberState, NodeId, Policy, SessionId, Status, View

LIMIT_S = 20.0
SESSION = SessionId("0000000000001-00000000")


@dataclass
class ServingNode:
    """One node. `told` is what was to become events of jobs."""

    name: str
    folder: Path
    passport: Passport
    peers: Peers
    blobs: Blobs
    rooms: EngineRoom
    serving: Serving
    state: MemberState = "up"
    url: str = ""
    told: list[tuple[str, str]] = field(default_factory=list)

    @property
    def id(self) -> NodeId:
        return self.passport.node_id

    @property
    def addresses(self) -> tuple[Address, ...]:
        return (Address(self.url.removeprefix("http://")),) if self.url else ()

    def models(self) -> list[str]:
        return [model.name for engine in self.rooms for model in engine.models]

    def digest(self, name: str) -> str:
        return next(model.digest for engine in self.rooms for model in engine.models if model.name == name)


@dataclass
class ServingMesh:
    """All nodes by name."""

    http: aiohttp.ClientSession
    token: str | None
    nodes: dict[str, ServingNode] = field(default_factory=dict)

    def __getitem__(self, name: str) -> ServingNode:
        return self.nodes[name]

    def view(self) -> View:
        members = {
            node.id: Member(node.id, SESSION, _status(node), number, node.state)
            for number, node in enumerate(self.nodes.values())
        }
        return View(Ballot(1, NodeId("0" * 32)), 1, None, members)

    def holders(self, nodes: Iterable[str]) -> list[Holder]:
        return [Holder(node.id, node.addresses) for node in self.nodes.values() if node.id in set(nodes)]

    async def ask(self, node: str, text: str, model: str) -> str:
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        status, answer = await self.call(node, "POST", "/v1/chat/completions", json=body)
        assert status == 200, answer
        return str(answer["choices"][0]["message"]["content"])

    async def call(self, node: str, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """As a client of it; status, and JSON or bytes."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        async with self.http.request(method, self.nodes[node].url + path, headers=headers, **options) as reply:
            body = await reply.read()
            return reply.status, json.loads(body) if reply.content_type == "application/json" else body


async def trained(node: ServingNode, name: str, *, base: str = "base", weights: bytes = b"", **facts: Any) -> Result:
    """What a job on this node left: an adapter, kept in its store."""
    folder = node.folder / f"result-{secrets.token_hex(4)}"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    (folder / "adapter_model.safetensors").write_bytes(weights or name.encode() * 50_000)
    digest = node.digest(base) if base in node.models() else ""
    (folder / ORIGIN_FILE).write_text(json.dumps({"base_model": base, "base_digest": digest}))
    return await kept(node, folder, name, base=base, **{"base_digest": digest, **facts})


async def kept(node: ServingNode, folder: Path, name: str, **facts: Any) -> Result:
    owner = f"test.{secrets.token_hex(4)}"
    manifest = await folder_manifest(node.blobs, folder, lambda digest: node.blobs.pin(owner, [digest]))
    artifact = await node.blobs.put_whole(manifest.encoded())
    node.blobs.pin(owner, [artifact])
    made = {"name": name, "job": new_job(), "artifact": artifact, "node": node.id, "holders": [node.id], "shared": True}
    return Result.model_validate(made | facts)


def new_job(at_ms: int = 1_800_000_000_000) -> str:
    return make_ulid(at_ms, secrets.token_bytes(10))


def write_model(folder: Path, seed: str = "") -> Path:
    """Without a single weight, but complete; `seed` makes it another one."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 64, "seed": seed}))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


@asynccontextmanager
async def serving_mesh(
    folder: Path, *names: str, token: str | None = "secret", base: str = "base"
) -> AsyncIterator[ServingMesh]:
    """Each serves `base`, but for those whose name begins with `other`."""
    async with AsyncExitStack() as stack:
        mesh = ServingMesh(await stack.enter_async_context(aiohttp.ClientSession()), token)
        cluster = f"test-{secrets.token_hex(4)}"
        for name in names:
            other = name.startswith("other")
            model = write_model(folder / name / ("another" if other else base), "other" if other else "")
            await add(mesh, stack, name, Passport(cluster, NodeId(secrets.token_hex(16)), SESSION, token), model)
        await until(lambda: all(node.models() for node in mesh.nodes.values()))
        yield mesh


async def add(
    mesh: ServingMesh, stack: AsyncExitStack, name: str, passport: Passport, model: Path, **limits: Any
) -> ServingNode:
    """One more node, or one that starts again in the same folder."""
    folder = model.parent
    (folder / "state").mkdir(exist_ok=True)
    peers = Peers(passport, Deaf())
    await peers.open()
    stack.push_async_callback(peers.close)
    flags = Flags(state_dir=folder / "state", no_detect=True, model=str(model))
    rooms = EngineRoom(resolve_options(flags, {}), tier=1, on_change=lambda: None)
    stack.push_async_callback(rooms.close)
    blobs = Blobs(folder / "blobs")
    blobs.open()
    copies = Copies(
        me=passport.node_id,
        blobs=blobs,
        peers=peers,
        view=mesh.view,
        token=passport.token is not None,
        is_over=lambda _: None,
        on_copied=lambda *_: None,
    )
    stack.push_async_callback(copies.close)
    served = Served(
        me=passport.node_id,
        rooms=rooms,
        shelf=ResultShelf(folder / "models", used=lambda: rooms.used, **limits),
        blobs=blobs,
        fetcher=copies.fetcher,
        holders=mesh.holders,
    )
    told: list[tuple[str, str]] = []
    serving = Serving(
        me=passport.node_id,
        served=served,
        view=mesh.view,
        peers=peers,
        aliases=lambda: ("gpt-4o",),
        is_open=passport.token is None,
        on_served=lambda job, text: told.append((job, text)),
    )
    node = mesh.nodes[name] = ServingNode(name, folder, passport, peers, blobs, rooms, serving, told=told)
    await rooms.open()
    await until(lambda: bool(node.models()))
    await served.open()
    stack.push_async_callback(serving.close)
    await _open_doors(mesh, stack, node, copies)
    return node


async def until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)


async def _open_doors(mesh: ServingMesh, stack: AsyncExitStack, node: ServingNode, copies: Copies) -> None:
    gateway = Gateway(
        me=node.id,
        engines=lambda: node.rooms.engines,
        view=mesh.view,
        peers=node.peers,
        on_elsewhere=node.serving.asked_elsewhere,
    )

    async def apply(_: object) -> Policy:
        return Policy()

    context = Context(
        passport=node.passport,
        name=node.name,
        version="0.0.test",
        host_names=frozenset(),
        gateway=gateway,
        engines=lambda: node.rooms.engines,
        view=mesh.view,
        wall=lambda: 0.0,
        policy=Policy,
        apply_policy=apply,
        publish_policy=apply,
        draining=lambda: False,
    )
    app = make_app(context, max_body_bytes=1 << 20)
    register_blobs(app, copies)
    register_models(app, node.serving)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    node.url = f"http://127.0.0.1:{runner.addresses[0][1]}"


def _status(node: ServingNode) -> Status:
    models = tuple(model for engine in node.rooms for model in engine.models)
    engines = tuple(engine.info for engine in node.rooms)
    return Status(node.name, node.addresses, tier=1, models=models, engines=engines)
