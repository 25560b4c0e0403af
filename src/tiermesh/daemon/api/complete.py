"""`POST /api/complete`: the mesh's own dialect, translated to a chat completion and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tiermesh.core.routing import Candidate, RouteRequest
from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.callers import caller_of
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.daemon.api.errors import error_data
from tiermesh.daemon.api.relay import request_id, send, served_by, stream_response
from tiermesh.daemon.gateway import Answer, Ask
from tiermesh.daemon.sse import data_of, error_in, event
from tiermesh.errors import EngineFailed, InvalidInput, TiermeshError
from tiermesh.protocol.complete import CompleteDelta, CompleteDone, CompleteRequest, CompleteResponse, Usage
from tiermesh.protocol.validation import validated


async def answer_complete(request: web.Request) -> web.StreamResponse:
    """`POST /api/complete`."""
    asked = validated(CompleteRequest, await read_object(request))
    ask = Ask(
        body=chat_body(asked),
        route=RouteRequest(asked.model, asked.tier),
        stream=asked.stream,
        request_id=request_id(request),
        caller=caller_of(request),
    )
    async with request.app[CONTEXT].gateway.chat(ask) as answer:
        if answer.events is not None:
            return await _stream(request, ask, answer)
        if answer.status != 200:
            raise InvalidInput(_verdict_text(answer))
        response = whole_answer(json.loads(answer.body), answer.candidate)
        return web.json_response(response.model_dump(mode="json"), headers=served_by(ask, answer))


def chat_body(asked: CompleteRequest) -> dict[str, Any]:
    """The same request as OpenAI's chat-completion body; what was not given is left out."""
    body = asked.model_dump(exclude_none=True, exclude={"model", "tier"})
    if asked.stream:
        body["stream_options"] = {"include_usage": True}
    return body


def whole_answer(completion: Mapping[str, Any], candidate: Candidate) -> CompleteResponse:
    """OpenAI's answer as ours. Raises `EngineFailed` when it isn't one."""
    try:
        choice = completion["choices"][0]
        message = choice["message"]
        return CompleteResponse(
            content=message.get("content"),
            tool_calls=message.get("tool_calls") or None,
            finish_reason=choice.get("finish_reason"),
            usage=_usage(completion.get("usage")),
            model=candidate.model.name,
            node=candidate.node_name,
            tier=candidate.model.tier,
        )
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise EngineFailed(f"{candidate.node_name} sent an answer that can't be read ({error!r})") from None


@dataclass(slots=True)
class Assembly:
    """A streamed chat completion, put together again."""

    texts: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    finish_reason: str | None = None
    usage: Usage | None = None

    def add(self, data: str) -> str:
        """Take one event's data; gives the text that it adds. Raises `EngineFailed` for an error or garbage."""
        if data == "[DONE]":
            return ""
        if (problem := error_in(data)) is not None:
            raise EngineFailed(problem)
        try:
            return self._take(json.loads(data))
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise EngineFailed(f"an event that can't be read ({error!r})") from None

    def whole(self, candidate: Candidate) -> CompleteDone:
        """All of it, after the last event. Raises `EngineFailed` when the pieces make no answer."""
        try:
            return CompleteDone(
                content="".join(self.texts) or (None if self.calls else ""),
                tool_calls=[self.calls[index] for index in sorted(self.calls)] or None,
                finish_reason=self.finish_reason,
                usage=self.usage,
                model=candidate.model.name,
                node=candidate.node_name,
                tier=candidate.model.tier,
            )
        except (TypeError, ValueError) as error:
            raise EngineFailed(f"{candidate.node_name} streamed an answer that can't be read ({error!r})") from None

    def _take(self, chunk: Mapping[str, Any]) -> str:
        self.usage = _usage(chunk.get("usage")) or self.usage
        if not chunk.get("choices"):
            return ""
        choice = chunk["choices"][0]
        delta = choice.get("delta") or {}
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        for call in delta.get("tool_calls") or ():
            self._take_call(call)
        text = delta.get("content") or ""
        if not isinstance(text, str):
            raise TypeError(f"content is a {type(text).__name__}")
        text.encode()  # half of a surrogate pair is no text
        self.texts.append(text)
        return text

    def _take_call(self, piece: Mapping[str, Any]) -> None:
        """The first piece of a call has its id and name; later ones add to the arguments."""
        call = self.calls.setdefault(
            piece.get("index", 0), {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        function = piece.get("function") or {}
        call["id"] = piece.get("id") or call["id"]
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""


async def _stream(request: web.Request, ask: Ask, answer: Answer) -> web.StreamResponse:
    assert answer.events is not None, "only streams come here"
    assembly = Assembly()
    async with stream_response(request, served_by(ask, answer)) as response:
        try:
            async for piece in answer.events:
                text = "".join([assembly.add(data) for data in data_of(piece)])
                if text:
                    await send(response, event(CompleteDelta(content=text).model_dump_json()))
            await response.write(event(assembly.whole(answer.candidate).model_dump_json()))
        except TiermeshError as error:
            await response.write(event(json.dumps({"type": "error", **json.loads(error_data(request, error))})))
    return response


def _usage(usage: Mapping[str, Any] | None) -> Usage | None:
    if not usage:
        return None
    return Usage(**{name: int(usage.get(name) or 0) for name in Usage.model_fields})


def _verdict_text(answer: Answer) -> str:
    text = answer.body.decode("utf-8", "replace")
    return error_in(text) or text or f"refused with HTTP {answer.status}"
