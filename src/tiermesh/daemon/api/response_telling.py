"""A chat completion told as a response of OpenAI's Responses API: a list of items, one open at a time. Pure."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from tiermesh.daemon.api.said import CallPiece, Piece, Tokens
from tiermesh.daemon.api.translate_responses import wants_logprobs
from tiermesh.errors import EngineFailed, TiermeshError
from tiermesh.protocol.errors import openai_error
from tiermesh.protocol.responses import ResponsesRequest

Json = dict[str, Any]

_INCOMPLETE: Mapping[str | None, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Reasons for which an answer is not whole."""


class ResponseTelling:
    """One answer: messages and function calls in the order in which they come."""

    media_type = "text/event-stream"

    def __init__(self, asked: ResponsesRequest, model: str, *, created_at: float) -> None:
        self._asked = asked
        self._logprobs = wants_logprobs(asked)
        self._id = f"resp_{secrets.token_hex(16)}"
        self._model, self._created_at = model, created_at
        self._items: list[Json] = []
        self._open = False
        self._call: int | None = None
        self._reason: str | None = None
        self._tokens: Tokens | None = None
        self._sequence = 0
        self._told: list[bytes] = []

    def begin(self) -> bytes:
        self._tell("response.created", response=self._response("in_progress"))
        self._tell("response.in_progress", response=self._response("in_progress"))
        return self._flush()

    def take(self, piece: Piece) -> bytes:
        self._tokens = piece.tokens or self._tokens
        self._reason = piece.finish_reason or self._reason
        if piece.text or piece.logprobs:
            self._say(piece.text, piece.logprobs if self._logprobs else ())
        for call in piece.calls:
            self._take_call(call)
        return self._flush()

    def end(self) -> bytes:
        self._close("incomplete" if self._reason in _INCOMPLETE else "completed")
        status = self._status()
        self._tell(f"response.{status}", response=self._response(status))
        return self._flush()

    def failed(self, error: TiermeshError) -> bytes:
        """Both ways in which clients look for an error: as fields of the event and as an object."""
        told = openai_error(error).error.model_dump()
        self._tell("error", code=told["code"], message=told["message"], param=told["param"], error=told)
        return self._flush()

    def body(self) -> Json:
        return self._response(self._status())

    def _status(self) -> str:
        return "incomplete" if self._reason in _INCOMPLETE else "completed"

    def _response(self, status: str) -> Json:
        """The settings are those of the request; what it left to the engine is null."""
        asked = self._asked
        reason = _INCOMPLETE.get(self._reason) if status == "incomplete" else None
        tools = [{**tool.model_dump(), "strict": bool(tool.strict)} for tool in asked.tools or ()]
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": reason} if reason else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": self._model,
            "output": self._items,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": asked.reasoning.effort if asked.reasoning else None, "summary": None},
            "store": False,
            "temperature": asked.temperature,
            "text": {"format": (asked.text and asked.text.format) or {"type": "text"}},
            "tool_choice": asked.tool_choice or "auto",
            "tools": tools,
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": _usage(self._tokens),
        }

    def _say(self, text: str, logprobs: Sequence[Mapping[str, Any]]) -> None:
        if not self._open or self._items[-1]["type"] != "message":
            self._start({"id": _new("msg"), "type": "message", "role": "assistant", "content": []})
            self._items[-1]["content"].append(_part())
            self._of_part("response.content_part.added", part=_part())
        part = self._items[-1]["content"][0]
        part["text"] += text
        part["logprobs"].extend(logprobs)
        self._of_part("response.output_text.delta", delta=text, logprobs=list(logprobs))

    def _take_call(self, piece: CallPiece) -> None:
        if self._call is None or piece.index > self._call:
            if not piece.name:
                raise EngineFailed("a tool call without a name")
            call_id = piece.id or _new("call")
            self._start(
                {"id": _new("fc"), "type": "function_call", "call_id": call_id, "name": piece.name, "arguments": ""}
            )
            self._call = piece.index
        elif piece.index < self._call or self._items[-1]["type"] != "function_call":
            raise EngineFailed("a tool call that goes on after it was over")
        if piece.arguments:
            self._items[-1]["arguments"] += piece.arguments
            self._of_item("response.function_call_arguments.delta", delta=piece.arguments)

    def _start(self, item: Json) -> None:
        self._close("completed")
        self._items.append({**item, "status": "in_progress"})
        self._open = True
        self._tell("response.output_item.added", output_index=len(self._items) - 1, item=self._items[-1])

    def _close(self, status: str) -> None:
        """The last item may be cut off, and says so."""
        if not self._open:
            return
        self._open = False
        item = self._items[-1]
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            self._of_part("response.output_text.done", text=part["text"], logprobs=part["logprobs"])
            self._of_part("response.content_part.done", part=part)
        else:
            done = {"name": item["name"], "arguments": item["arguments"]}
            self._of_item("response.function_call_arguments.done", **done)
        self._tell("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _of_item(self, kind: str, **data: object) -> None:
        self._tell(kind, item_id=self._items[-1]["id"], output_index=len(self._items) - 1, **data)

    def _of_part(self, kind: str, **data: object) -> None:
        self._of_item(kind, content_index=0, **data)

    def _tell(self, kind: str, **data: object) -> None:
        told = json.dumps({"type": kind, "sequence_number": self._sequence, **data})
        self._sequence += 1
        self._told.append(f"event: {kind}\ndata: {told}\n\n".encode())

    def _flush(self) -> bytes:
        told, self._told = b"".join(self._told), []
        return told


def _part() -> Json:
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}


def _usage(tokens: Tokens | None) -> Json | None:
    """None where the engine did not count."""
    if tokens is None:
        return None
    return {
        "input_tokens": tokens.prompt,
        "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": 0},
        "output_tokens": tokens.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens.prompt + tokens.completion,
    }


def _new(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"
