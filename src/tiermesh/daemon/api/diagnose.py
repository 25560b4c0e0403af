"""`POST /api/cluster/test`: this node tries its own engines, and every other member by each of its addresses."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping

import aiohttp
from aiohttp import web

from tiermesh.adapters.engines import Engine, Reply
from tiermesh.adapters.probe import open_session, probe
from tiermesh.errors import EngineFailed, TiermeshError
from tiermesh.protocol.cluster import NodeName
from tiermesh.protocol.diagnose import DiagnoseReport, EngineTrial, PeerProbes
from tiermesh.types import Member, NodeId, View

TRIAL_LIMIT_S = 120.0
"""A cold model is loaded for its trial; a large one from a slow disk takes minutes."""

ANSWER_LIMIT_BYTES = 1024 * 1024
"""An answer of one token is far shorter."""

TRIAL: Mapping[str, object] = {
    "messages": [{"role": "user", "content": "Say yes."}],
    "max_tokens": 1,
    "temperature": 0.0,
}


class Diagnosis:
    """Tries on request, one trial at a time: who asks twice waits, and costs the mesh no more."""

    def __init__(
        self,
        *,
        me: NodeId,
        name: str,
        version: str,
        view: Callable[[], View],
        engines: Callable[[], Mapping[str, Engine]],
    ) -> None:
        self._me = NodeName(id=me, name=name)
        self._version = version
        self._view = view
        self._engines = engines
        self._turn = asyncio.Lock()

    def routes(self) -> list[web.RouteDef]:
        """For the daemon's public plane."""
        return [web.post("/api/cluster/test", self._handle)]

    async def run(self) -> DiagnoseReport:
        """Try everything now."""
        others = [m for m in self._view().members.values() if m.id != self._me.id and m.state != "down"]
        async with self._turn, open_session() as http:
            engines, peers = await asyncio.gather(
                asyncio.gather(*(_try_engine(name, engine) for name, engine in self._engines().items())),
                asyncio.gather(*(_try_peer(http, member) for member in others)),
            )
        return DiagnoseReport(node=self._me, version=self._version, engines=engines, peers=peers)

    async def _handle(self, request: web.Request) -> web.Response:
        return web.json_response(text=(await self.run()).model_dump_json())


async def _try_peer(http: aiohttp.ClientSession, member: Member) -> PeerProbes:
    status = member.status
    probes = await asyncio.gather(*(probe(http, address, member.id, status.name) for address in status.addresses))
    return PeerProbes(id=member.id, name=status.name, probes=probes)


async def _try_engine(name: str, engine: Engine) -> EngineTrial:
    """One token from its first model, a warm one if there is any."""
    models = sorted(engine.models, key=lambda model: model.state != "warm")
    if not models:
        return EngineTrial(engine=name, model="", problem=f"it is {engine.info.state} and offers no model")
    model = models[0].name
    started = time.monotonic()
    try:
        async with asyncio.timeout(TRIAL_LIMIT_S), engine.chat({**TRIAL, "model": model}) as reply:
            problem = await _problem_of(reply)
    except TimeoutError:
        problem = f"no answer within {TRIAL_LIMIT_S:g} s"
    except TiermeshError as error:
        problem = str(error)
    return EngineTrial(
        engine=name, model=model, latency_ms=round((time.monotonic() - started) * 1000, 3), problem=problem
    )


async def _problem_of(reply: Reply) -> str | None:
    """None when the reply is a completion; else what it is instead."""
    raw = b""
    async for chunk in reply.chunks:
        raw += chunk
        if len(raw) > ANSWER_LIMIT_BYTES:
            raise EngineFailed("one token should be said in fewer than a million bytes")
    if reply.status != 200:
        return f"HTTP {reply.status}: {raw[:300].decode(errors='replace')}"
    try:
        answered = bool(json.loads(raw)["choices"])
    except (ValueError, KeyError, TypeError):
        answered = False
    return None if answered else "its answer is no chat completion"
