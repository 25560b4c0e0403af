"""`POST /api/cluster/test`: this node tries its own engines, and every other member by each of its addresses."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping

from aiohttp import web

from tiermesh.adapters.engines import Engine, Reply
from tiermesh.adapters.probe import Prober
from tiermesh.daemon.api.context import CONTEXT, Context
from tiermesh.errors import EngineFailed, TiermeshError
from tiermesh.protocol.cluster import NodeName
from tiermesh.protocol.diagnose import DiagnoseReport, EngineTrial, PeerProbes
from tiermesh.types import Member

TRIAL_LIMIT_S = 120.0
"""A cold model is loaded for its trial; a large one from a slow disk takes minutes."""

ANSWER_LIMIT_BYTES = 1024 * 1024
"""An answer of one token is far shorter."""

TRIAL: Mapping[str, object] = {
    "messages": [{"role": "user", "content": "Say yes."}],
    "max_tokens": 1,
    "temperature": 0.0,
}


def register_diagnosis(app: web.Application) -> None:
    """Add the route. One diagnosis runs at a time: who asks twice waits, and costs the mesh no more."""
    turn = asyncio.Lock()

    async def diagnose(request: web.Request) -> web.Response:
        async with turn:
            report = await run_diagnosis(request.app[CONTEXT])
        return web.json_response(report.model_dump(mode="json"))

    app.router.add_post("/api/cluster/test", diagnose)


async def run_diagnosis(context: Context) -> DiagnoseReport:
    """Try everything now: engines, and members that are not down."""
    others = [m for m in context.view().members.values() if m.id != context.me and m.state != "down"]
    async with Prober() as prober:
        engines, peers = await asyncio.gather(
            asyncio.gather(*(_try_engine(name, engine) for name, engine in context.engines().items())),
            asyncio.gather(*(_try_peer(prober, member) for member in others)),
        )
    node = NodeName(id=context.me, name=context.name)
    return DiagnoseReport(node=node, version=context.version, engines=engines, peers=peers)


async def _try_peer(prober: Prober, member: Member) -> PeerProbes:
    status = member.status
    probes = await asyncio.gather(*(prober.ask(address, member.id, status.name) for address in status.addresses))
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
