"""`POST /api/complete`: the mesh's own dialect, translated to a chat completion and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from tiermesh.core.routing import Candidate, RouteRequest
from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.callers import caller_of
from tiermesh.daemon.api.errors import error_data
from tiermesh.daemon.api.relay import request_id
from tiermesh.daemon.api.said import CallPiece, Piece, Tokens
from tiermesh.daemon.api.translated import answered
from tiermesh.daemon.gateway import Ask
from tiermesh.daemon.sse import event
from tiermesh.errors import EngineFailed, TiermeshError
from tiermesh.protocol.complete import CompleteDelta, CompleteDone, CompleteRequest, Usage
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
    return await answered(
        request, ask, lambda candidate: CompleteTelling(candidate, lambda error: error_data(request, error))
    )


def chat_body(asked: CompleteRequest) -> dict[str, Any]:
    """The same request as OpenAI's chat-completion body; what was not given is left out."""
    body = asked.model_dump(exclude_none=True, exclude={"model", "tier"})
    if asked.stream:
        body["stream_options"] = {"include_usage": True}
    return body


class CompleteTelling:
    """An answer as deltas of text, and whole at the end. `error_data` puts an error into our own words."""

    media_type = "text/event-stream"

    def __init__(self, candidate: Candidate, error_data: Callable[[TiermeshError], str]) -> None:
        self._candidate = candidate
        self._error_data = error_data
        self._text: list[str] = []
        self._calls: dict[int, CallPiece] = {}
        self._reason: str | None = None
        self._tokens: Tokens | None = None

    def begin(self) -> bytes:
        return b""

    def take(self, piece: Piece) -> bytes:
        self._tokens = piece.tokens or self._tokens
        if piece.choice:  # one was asked for
            return b""
        self._reason = piece.finish_reason or self._reason
        for call in piece.calls:
            self._take_call(call)
        if not piece.text:
            return b""
        self._text.append(piece.text)
        return event(CompleteDelta(content=piece.text).model_dump_json())

    def end(self) -> bytes:
        return event(json.dumps(self._whole().model_dump(mode="json")))

    def failed(self, error: TiermeshError) -> bytes:
        return event(json.dumps({"type": "error", **json.loads(self._error_data(error))}))

    def body(self) -> dict[str, Any]:
        return self._whole().model_dump(mode="json", exclude={"type"})

    def _whole(self) -> CompleteDone:
        tokens, model = self._tokens, self._candidate.model
        return CompleteDone(
            content="".join(self._text) or (None if self._calls else ""),
            tool_calls=[_call(self._calls[index]) for index in sorted(self._calls)] or None,
            finish_reason=self._reason,
            usage=None if tokens is None else _usage(tokens),
            model=model.name,
            node=self._candidate.node_name,
            tier=model.tier,
        )

    def _take_call(self, piece: CallPiece) -> None:
        """The first piece of a call has its id and name; later ones add to the arguments."""
        known = self._calls.get(piece.index, CallPiece(piece.index))
        self._calls[piece.index] = CallPiece(
            piece.index, piece.id or known.id, known.name + piece.name, known.arguments + piece.arguments
        )


def _call(call: CallPiece) -> dict[str, Any]:
    if not call.name:
        raise EngineFailed("a tool call that can't be read: it has no name")
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _usage(tokens: Tokens) -> Usage:
    return Usage(
        prompt_tokens=tokens.prompt,
        completion_tokens=tokens.completion,
        total_tokens=tokens.prompt + tokens.completion,
    )
