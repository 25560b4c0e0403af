"""The peer plane: work that another node has routed here. It never routes on."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from aiohttp import web

from tiermesh.adapters.engines import Engine, Reply
from tiermesh.adapters.peer_requests import EMBED_PATH, GENERATE_PATH, POLICY_PATH
from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.context import CONTEXT, Context
from tiermesh.daemon.api.relay import hang_up, send
from tiermesh.daemon.api.report import policy_report
from tiermesh.daemon.gateway import REQUEST_TIMEOUT_S
from tiermesh.daemon.sse import event
from tiermesh.errors import DeadlineExceeded, InvalidInput, TiermeshError, Unavailable, UnknownModel, WorkerDied
from tiermesh.protocol import headers

ESCAPED = 3
"""What the asking node has read within its limit may come with all but ASCII escaped: 3 times as long at most."""


def register_peer(app: web.Application) -> None:
    """Add the peer routes, and the stamp to every answer on them, errors included."""
    app.router.add_post(GENERATE_PATH, generate)
    app.router.add_post(EMBED_PATH, embed)
    app.router.add_post(POLICY_PATH, publish_policy)
    app.on_response_prepare.append(_stamp)


async def generate(request: web.Request) -> web.StreamResponse:
    """`POST /mesh/v1/generate`: a chat completion by this node's own engine."""
    return await _relay(request, lambda engine, body: engine.chat(body))


async def embed(request: web.Request) -> web.StreamResponse:
    """`POST /mesh/v1/embed`: embeddings by this node's own engine."""
    return await _relay(request, lambda engine, body: engine.embed(body))


async def publish_policy(request: web.Request) -> web.Response:
    """`POST /mesh/v1/policy`: another node asks its coordinator to publish the body."""
    policy = await request.app[CONTEXT].publish_policy(await read_object(request))
    return web.json_response(policy_report(policy).model_dump(mode="json"))


async def _relay(
    request: web.Request, ask: Callable[[Engine, dict[str, Any]], AbstractAsyncContextManager[Reply]]
) -> web.StreamResponse:
    """Have the engine answer, byte by byte as it does. What breaks off is cut off, so that the asking node sees it."""
    context = request.app[CONTEXT]
    if context.draining():
        raise Unavailable(f"node {context.name} is leaving the mesh, or was told to rest")
    body = await read_object(request, leeway=ESCAPED)
    engine = _engine_for(context, body)
    try:
        async with asyncio.timeout(_left_s(request)), ask(engine, body) as reply:
            return await _passed_on(request, reply)
    except TimeoutError:
        raise DeadlineExceeded("the asking node's time limit passed") from None


async def _passed_on(request: web.Request, reply: Reply) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers={"Content-Type": reply.content_type})
    if retry_after := reply.headers.get("Retry-After"):
        response.headers["Retry-After"] = retry_after
    if "Content-Encoding" not in reply.headers and (length := reply.headers.get("Content-Length")):
        response.content_length = int(length)  # a body in chunks takes a packet more
    await response.prepare(request)
    complete, chunk = False, b""
    try:
        async for chunk in reply.chunks:
            await send(response, chunk)
        await response.write_eof()
        complete = True
    except WorkerDied as error:
        if chunk.endswith(b"\n\n"):  # whoever goes on with the stream must know that it may be the request
            detail = {"type": error.type, "message": str(error)}
            await response.write(event(json.dumps({"error": detail})))
    except TiermeshError:
        pass  # cut off below; the asking node tells the story
    finally:
        if not complete:
            hang_up(request)
    return response


def _engine_for(context: Context, body: dict[str, Any]) -> Engine:
    """The engine that serves the model; the one that the asking node chose, when that one does."""
    name, chosen = body.get("model"), body.pop("engine", None)
    if not isinstance(name, str):
        raise InvalidInput("model: must be a string", param="model")
    serving = [engine for engine in context.engines().values() if any(model.name == name for model in engine.models)]
    if not serving:
        raise UnknownModel(f"model: node {context.name} does not serve {name!r} itself", param="model")
    return next((engine for engine in serving if engine.info.name == chosen), serving[0])


def _left_s(request: web.Request) -> float:
    """Until the asking node has lost patience. Raises `InvalidInput`."""
    try:
        left_s = float(request.headers.get(headers.DEADLINE, REQUEST_TIMEOUT_S))
    except ValueError:
        left_s = math.nan
    if not 0 < left_s < math.inf:
        raise InvalidInput(f"{headers.DEADLINE}: must be seconds that are left", param=headers.DEADLINE)
    return min(left_s, REQUEST_TIMEOUT_S)


async def _stamp(request: web.Request, response: web.StreamResponse) -> None:
    if request.path.startswith("/mesh/"):
        response.headers.update(request.app[CONTEXT].passport.stamp)
