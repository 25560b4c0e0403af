"""The public plane: routes for people and programs, always routed over the mesh."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web
from pydantic import BaseModel

from tiermesh.core.routing import RouteRequest, names_of
from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.callers import caller_of
from tiermesh.daemon.api.complete import answer_complete
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.daemon.api.errors import error_data
from tiermesh.daemon.api.relay import request_id, send, served_by, stream_response
from tiermesh.daemon.api.report import cluster_report, health_report, policy_report
from tiermesh.daemon.gateway import Answer, Ask
from tiermesh.daemon.sse import DONE, event
from tiermesh.errors import TiermeshError, UnknownModel
from tiermesh.protocol import headers
from tiermesh.protocol.openai import ChatCompletionRequest, EmbeddingRequest, ModelCard, ModelList
from tiermesh.protocol.validation import validated


def register_public(app: web.Application) -> None:
    """Add the public routes."""
    app.router.add_get("/health", health)
    app.router.add_get("/api/cluster", cluster)
    app.router.add_get("/api/config", show_policy)
    app.router.add_post("/api/config", apply_policy)
    app.router.add_post("/api/complete", answer_complete)
    app.router.add_post("/v1/chat/completions", chat_completions)
    app.router.add_post("/v1/embeddings", embeddings)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/v1/models/{id:.+}", model)


async def health(request: web.Request) -> web.Response:
    """`GET /health`."""
    return _json(health_report(request.app[CONTEXT]))


async def cluster(request: web.Request) -> web.Response:
    """`GET /api/cluster`."""
    return _json(cluster_report(request.app[CONTEXT]))


async def show_policy(request: web.Request) -> web.Response:
    """`GET /api/config`."""
    return _json(policy_report(request.app[CONTEXT].policy()))


async def apply_policy(request: web.Request) -> web.Response:
    """`POST /api/config`: the body is the whole new policy document."""
    body = await read_object(request)
    return _json(policy_report(await request.app[CONTEXT].apply_policy(body)))


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/chat/completions`: the body goes to the engine as it came, but for the model's name."""
    body = await read_object(request)
    asked = validated(ChatCompletionRequest, body)
    ask = Ask(
        body=body,
        route=RouteRequest(asked.model),
        stream=bool(asked.stream),
        request_id=request_id(request),
        caller=caller_of(request),
    )
    async with request.app[CONTEXT].gateway.chat(ask) as answer:
        if answer.events is None:
            return _whole(ask, answer)
        async with stream_response(request, served_by(ask, answer)) as response:
            try:
                async for piece in answer.events:
                    await send(response, piece)
            except TiermeshError as error:
                await send(response, event(error_data(request, error)) + DONE)
        return response


async def embeddings(request: web.Request) -> web.StreamResponse:
    """`POST /v1/embeddings`, routed like a chat."""
    body = await read_object(request)
    asked = validated(EmbeddingRequest, body)
    ask = Ask(
        body=body,
        route=RouteRequest(asked.model),
        stream=False,
        request_id=request_id(request),
        caller=caller_of(request),
        task="embeddings",
    )
    async with request.app[CONTEXT].gateway.chat(ask) as answer:
        return _whole(ask, answer)


async def models(request: web.Request) -> web.Response:
    """`GET /v1/models`: every name that a request may have now, `auto` first.

    The header that names this node keeps a mesh from being taken for one of its own engines.
    """
    return _json(ModelList(data=_cards(request)), {headers.NODE: request.app[CONTEXT].name})


async def model(request: web.Request) -> web.Response:
    """`GET /v1/models/{id}`."""
    wanted = request.match_info["id"]
    cards = _cards(request)
    for card in cards:
        if card.id in (wanted, wanted.removesuffix(":latest")):
            return _json(card)
    there = ", ".join(card.id for card in cards)
    raise UnknownModel(f"model: no node has {wanted!r}; there are: {there or 'none'}", param="model")


def _whole(ask: Ask, answer: Answer) -> web.Response:
    content_type = answer.content_type.partition(";")[0] or "application/json"
    return web.Response(
        status=answer.status, body=answer.body, content_type=content_type, headers=served_by(ask, answer)
    )


def _cards(request: web.Request) -> list[ModelCard]:
    context = request.app[CONTEXT]
    served = names_of(context.view(), context.me, context.gateway.dispatch.routing.aliases)
    return [ModelCard(id=name, owned_by=", ".join(nodes)) for name, nodes in served.items()]


def _json(body: BaseModel, extra: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response(body.model_dump(mode="json"), headers=extra)
