"""Nodes that copy from one another: real HTTP, real files, a view that the test sets, and doors that misbehave."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler
from tests.daemon.still_mesh import Deaf

from tiermesh.adapters.blobs import Blobs
from tiermesh.adapters.fetching import Holder
from tiermesh.adapters.passport import Passport
from tiermesh.adapters.peers import Peers
from tiermesh.core.attempts import Checkpoint
from tiermesh.daemon.api import Context, make_app
from tiermesh.daemon.api.blobs import register_blobs
from tiermesh.daemon.api.data import register_data
from tiermesh.daemon.copies import Copies
from tiermesh.daemon.gateway import Gateway
from tiermesh.protocol.artifacts import BLOBS_PATH
from tiermesh.protocol.run_folder import RunFolder, checkpoint_name
from tiermesh.protocol.ulid import make_ulid
from tiermesh.types import Address, Ballot, Member, MemberState, NodeId, Policy, SessionId, Status, View

LIMIT_S = 20.0


@dataclass
class CopyingNode:
    """One node. `faults` are what the next asked for files meet: `cut:N` (N bytes, then the connection breaks), `lie`
    (other bytes), `short` (says that it has less), `drip` (next to nothing), `away` (503)."""

    name: str
    passport: Passport
    blobs: Blobs
    peers: Peers
    copies: Copies
    folder: Path
    url: str = ""
    runner: web.AppRunner | None = None
    draining: bool = False
    faults: list[str] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Of each file that was asked for: the beginning of its digest, and the range."""
    told: list[tuple[str, int, Checkpoint]] = field(default_factory=list)
    over: dict[str, bool] = field(default_factory=dict)

    @property
    def id(self) -> NodeId:
        return self.passport.node_id

    @property
    def holder(self) -> Holder:
        return Holder(self.id, (Address(self.url.removeprefix("http://")),))

    def files(self) -> set[str]:
        """What lies in its store, unfinished things too."""
        return {path.name for path in (self.folder / "blobs").iterdir() if path.is_file()}


@dataclass
class CopyingMesh:
    """All nodes by name, and the view that they share."""

    http: aiohttp.ClientSession
    token: str | None
    nodes: dict[str, CopyingNode] = field(default_factory=dict)
    view: View = field(default_factory=View)

    def __getitem__(self, name: str) -> CopyingNode:
        return self.nodes[name]

    def mark(self, name: str, state: MemberState = "up", **status: Any) -> None:
        node = self.nodes[name].id
        member = self.view.members[node]
        member = replace(member, state=state, status=replace(member.status, **status))
        self.view = replace(self.view, members={**self.view.members, node: member})

    async def ask(self, node: str, method: str, path: str, **options: Any) -> tuple[int, Any, dict[str, str]]:
        """As a client of it; status, JSON, headers."""
        headers = options.pop("headers", {}) | ({"Authorization": f"Bearer {self.token}"} if self.token else {})
        async with self.http.request(method, self.nodes[node].url + path, headers=headers, **options) as reply:
            body = await reply.read()
            return reply.status, json.loads(body) if body else None, dict(reply.headers)


@asynccontextmanager
async def copying_mesh(folder: Path, *names: str, token: str | None = "secret") -> AsyncIterator[CopyingMesh]:
    async with AsyncExitStack() as stack:
        mesh = CopyingMesh(await stack.enter_async_context(aiohttp.ClientSession()), token)
        cluster = f"test-{secrets.token_hex(4)}"
        for name in names:
            await _add(mesh, stack, name, Passport(cluster, _new_id(), _SESSION, token), folder / name)
        members = {
            node.id: Member(node.id, _SESSION, Status(name, node.holder.addresses), number)
            for number, (name, node) in enumerate(mesh.nodes.items())
        }
        first = mesh.nodes[names[0]].id
        mesh.view = View(Ballot(1, first), 1, first, members)
        yield mesh


def new_job() -> str:
    return make_ulid(1_800_000_000_000, secrets.token_bytes(10))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def save(run: RunFolder, step: int, loss: float | None = None, spec: Mapping[str, object] | None = None) -> str:
    """As a worker does: the steps since the last one, a checkpoint, its event. Gives its name."""
    name = checkpoint_name(step)
    made = run.checkpoints / name
    made.mkdir(parents=True)
    (made / "tensors.safetensors").write_bytes(f"tensors of {step}".encode() * 1000)
    facts = {"step": step, "loss": loss, "facts": {"conditions": {"spec": dict(spec or {})}}}
    (made / "facts.json").write_text(json.dumps(facts))
    (made / "SHA256SUMS").write_text("of no interest here\n")
    run.latest.write_text(f"{name}\n")
    with run.events.open("a") as events:
        said = {"event": "step", "step": step, "steps": 99, "epoch": 0.5, "loss": 1.0, "learning_rate": 1e-4}
        events.write(json.dumps(said) + "\n")
        events.write(json.dumps({"event": "checkpoint", "step": step, "name": name}) + "\n")
    return name


_SESSION = SessionId("0000000000001-00000000")


def _new_id() -> NodeId:
    return NodeId(secrets.token_hex(16))


async def _add(mesh: CopyingMesh, stack: AsyncExitStack, name: str, passport: Passport, folder: Path) -> None:
    peers = Peers(passport, Deaf())
    await peers.open()
    stack.push_async_callback(peers.close)
    blobs = Blobs(folder / "blobs")
    blobs.open()
    over: dict[str, bool] = {}
    copies = Copies(
        me=passport.node_id,
        blobs=blobs,
        peers=peers,
        view=lambda: mesh.view,
        token=passport.token is not None,
        is_over=over.get,
        on_copied=lambda job, attempt, checkpoint: node.told.append((job, attempt, checkpoint)),
    )
    node = mesh.nodes[name] = CopyingNode(name, passport, blobs, peers, copies, folder, over=over)
    copies.start()
    stack.push_async_callback(copies.close)

    async def apply(body: object) -> Policy:
        return Policy()

    context = Context(
        passport=passport,
        name=name,
        version="0.0.test",
        host_names=frozenset(),
        gateway=cast(Gateway, None),
        engines=dict,
        view=lambda: mesh.view,
        wall=lambda: 0.0,
        policy=Policy,
        apply_policy=apply,
        publish_policy=apply,
        draining=lambda: node.draining,
    )
    app = make_app(context, max_body_bytes=1 << 20)
    register_blobs(app, copies)
    register_data(app, blobs)
    app.middlewares.append(_misbehaving(node))
    node.runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await node.runner.setup()
    stack.push_async_callback(node.runner.cleanup)
    await web.TCPSite(node.runner, "127.0.0.1", 0).start()
    node.url = f"http://127.0.0.1:{node.runner.addresses[0][1]}"


def _misbehaving(node: CopyingNode) -> Any:
    @web.middleware
    async def misbehave(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.startswith(BLOBS_PATH):
            return await handler(request)
        node.asked.append((request.path.rpartition("/")[2][:8], request.headers.get("Range", "")))
        fault, _, number = (node.faults.pop(0) if node.faults else "none").partition(":")
        path = node.blobs.find(request.path.rpartition("/")[2])
        content = b"" if path is None else path.read_bytes()
        match fault:
            case "cut":
                start = int(request.headers.get("Range", "bytes=0-")[6:-1])
                return await _give(request, content[start:], cut_at=int(number), start=start, total=len(content))
            case "lie":
                return web.Response(body=bytes(len(content)))
            case "short":
                return web.Response(body=content[:-1])
            case "drip":
                return await _give(request, content, cut_at=1, start=0, total=len(content), hang=True)
            case "away":
                return web.Response(status=503)
        return await handler(request)

    return misbehave


async def _give(
    request: web.Request, content: bytes, *, cut_at: int, start: int, total: int, hang: bool = False
) -> web.StreamResponse:
    headers = {"Content-Range": f"bytes {start}-{total - 1}/{total}"} if start else {}
    response = web.StreamResponse(status=206 if start else 200, headers=headers)
    response.content_length = len(content)
    await response.prepare(request)
    await response.write(content[:cut_at])
    if hang:
        await asyncio.sleep(LIMIT_S)
    assert request.transport is not None
    await asyncio.sleep(0.05)  # what was written leaves before the connection breaks
    request.transport.abort()
    return response
