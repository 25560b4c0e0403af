"""Ollama's API, for programs that know no other: they find the whole mesh where they look for one server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from aiohttp import web

from tiermesh.core.routing import RouteRequest, bare_name, is_up, names_of
from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.callers import caller_of
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.daemon.api.refusing import refuse_unknown
from tiermesh.daemon.api.relay import request_id, served_by
from tiermesh.daemon.api.translate_ollama import Asked, OllamaTelling, chat_body, generate_body
from tiermesh.daemon.api.translated import answered, asking, verdict
from tiermesh.daemon.gateway import Ask
from tiermesh.errors import EngineFailed, InvalidInput
from tiermesh.protocol import headers
from tiermesh.protocol.ollama import (
    OllamaChatRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
)
from tiermesh.protocol.validation import validated
from tiermesh.types import Model

API_VERSION = "0.12.6"
"""Of Ollama's API: clients conclude from it what they may ask for (streamed tool calls, thinking, `/api/show`)."""

CAPABILITIES = ("completion", "tools")
"""Of every model: tools go to its engine, and one that knows none says so."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A model as it is listed: under Ollama's full name, `NAME:TAG`. None: one that is chosen for each request."""

    name: str
    model: Model | None


def register_ollama(app: web.Application) -> None:
    """Add the routes."""
    app.router.add_post("/api/chat", chat)
    app.router.add_post("/api/generate", generate)
    app.router.add_post("/api/embed", embed)
    app.router.add_get("/api/tags", tags)
    app.router.add_get("/api/ps", running)
    app.router.add_post("/api/show", show)
    app.router.add_get("/api/version", version)


async def chat(request: web.Request) -> web.StreamResponse:
    """`POST /api/chat`."""
    asked = validated(OllamaChatRequest, await read_object(request))
    body = chat_body(asked)
    return await _answered(request, asked, body, "message") if asked.messages else _loaded(request, asked, "message")


async def generate(request: web.Request) -> web.StreamResponse:
    """`POST /api/generate`."""
    asked = validated(OllamaGenerateRequest, await read_object(request))
    body = generate_body(asked)
    return await _answered(request, asked, body, "response") if asked.prompt else _loaded(request, asked, "response")


async def embed(request: web.Request) -> web.Response:
    """`POST /api/embed`."""
    asked = validated(OllamaEmbedRequest, await read_object(request))
    refuse_unknown(asked, frozenset({"options"}))
    if not asked.input or (isinstance(asked.input, list) and "" in asked.input):
        raise InvalidInput("input: must not be empty", param="input")
    body = {"input": asked.input} | ({"dimensions": asked.dimensions} if asked.dimensions else {})
    ask = Ask(
        body=body,
        route=RouteRequest(asked.model),
        stream=False,
        request_id=request_id(request),
        task="embeddings",
        caller=caller_of(request),
    )
    async with request.app[CONTEXT].gateway.chat(ask) as answer:
        if answer.status != 200:
            raise verdict(answer)
        told = _embedded(answer.body, answer.candidate.model.name)
        return web.json_response(told, headers=served_by(ask, answer))


async def tags(request: web.Request) -> web.Response:
    """`GET /api/tags`: every name that a request may have now. What nobody knows, sizes for one, is left out."""
    context = request.app[CONTEXT]
    models = {shown.name: shown for shown in _shown(request)}
    names = map(_full_name, names_of(context.view(), context.me, context.gateway.dispatch.routing.aliases))
    return _json(request, {"models": [_card(models.get(name) or Shown(name, None)) for name in names]})


async def running(request: web.Request) -> web.Response:
    """`GET /api/ps`: those that are in memory somewhere."""
    return _json(
        request, {"models": [_card(shown) for shown in _shown(request) if shown.model and shown.model.state == "warm"]}
    )


async def show(request: web.Request) -> web.Response:
    """`POST /api/show`."""
    asked = validated(OllamaShowRequest, await read_object(request))
    wanted = asked.model or asked.name
    if not wanted:
        raise InvalidInput("model: is required", param="model")
    model = request.app[CONTEXT].gateway.plan(RouteRequest(wanted)).candidates[0].model
    about = {"details": _details(), "model_info": {"general.basename": bare_name(model.name)}}
    return _json(request, {**about, "capabilities": CAPABILITIES})


async def version(request: web.Request) -> web.Response:
    """`GET /api/version`."""
    return _json(request, {"version": API_VERSION})


async def _answered(
    request: web.Request, asked: Asked, body: dict[str, Any], said_in: Literal["message", "response"]
) -> web.StreamResponse:
    loop = asyncio.get_running_loop()
    created_at, asked_at = _created_at(request), loop.time()
    ask = asking(request, body, model=asked.model, stream=asked.stream is not False)
    return await answered(
        request,
        ask,
        lambda candidate: OllamaTelling(
            asked, candidate.model.name, said_in=said_in, created_at=created_at, now=loop.time, asked_at=asked_at
        ),
    )


def _loaded(request: web.Request, asked: Asked, said_in: Literal["message", "response"]) -> web.Response:
    """Nothing was asked: a hint to have the model ready, or out of the way. Nodes see to that themselves."""
    model = request.app[CONTEXT].gateway.plan(RouteRequest(asked.model)).candidates[0].model
    said = "" if said_in == "response" else {"role": "assistant", "content": ""}
    reason = "unload" if asked.keep_alive == 0 else "load"
    told = {"model": model.name, "created_at": _created_at(request), said_in: said, "done": True, "done_reason": reason}
    return web.json_response(told)


def _created_at(request: web.Request) -> str:
    return datetime.fromtimestamp(request.app[CONTEXT].wall(), UTC).isoformat().replace("+00:00", "Z")


def _shown(request: web.Request) -> Iterator[Shown]:
    """By name, each once: where it is warm, if it is anywhere."""
    context = request.app[CONTEXT]
    found: dict[str, Model] = {}
    for member in context.view().members.values():
        if is_up(member, context.me):
            for model in member.status.models:
                name = bare_name(model.name)
                if name not in found or model.state == "warm":
                    found[name] = model
    return (Shown(_full_name(name), found[name]) for name in sorted(found))


def _full_name(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


def _card(shown: Shown) -> dict[str, Any]:
    digest = "" if shown.model is None else shown.model.digest.removeprefix("sha256:")
    return {"name": shown.name, "model": shown.name, "digest": digest, "details": _details()}


def _details() -> dict[str, Any]:
    """Empty texts are Ollama's way to say that something is unknown."""
    unknown = dict.fromkeys(("parent_model", "format", "family", "parameter_size", "quantization_level"), "")
    return {**unknown, "families": None}


def _embedded(body: bytes, model: str) -> dict[str, Any]:
    try:
        answer = json.loads(body)
        rows = sorted(answer["data"], key=lambda row: int(row.get("index") or 0))
        usage = answer.get("usage") or {}
        vectors = [[float(number) for number in row["embedding"]] for row in rows]
        return {"model": model, "embeddings": vectors, "prompt_eval_count": int(usage.get("prompt_tokens") or 0)}
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise EngineFailed(f"embeddings that can't be read ({error!r})") from None


def _json(request: web.Request, body: dict[str, Any]) -> web.Response:
    """The header keeps a mesh from being taken for an Ollama of its own."""
    return web.json_response(body, headers={headers.NODE: request.app[CONTEXT].name})
