"""What an engine says, as values: a whole chat completion and the chunks of a streamed one come out alike.

Every API but OpenAI's chat is told from these; reading raises `EngineFailed` for whatever is no such answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tiermesh.daemon.sse import data_of, error_in
from tiermesh.errors import EngineFailed

_DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class Tokens:
    """As the engine counted them; `cached` of the prompt needed no computing."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A part of a tool call. Its first one has the name; `arguments` of all parts together are one JSON object."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one chunk adds to one choice; a choice of a whole answer is one piece.

    `stop` is the stop string that ended it, where the engine tells. `tokens` come last, in a piece of their own.
    """

    choice: int = 0
    text: str = ""
    thought: str = ""
    calls: tuple[CallPiece, ...] = ()
    finish_reason: str | None = None
    stop: str | None = None
    logprobs: tuple[Mapping[str, Any], ...] = ()
    tokens: Tokens | None = None


def pieces_of(events: bytes) -> Iterator[Piece]:
    """The pieces in whole server-sent events of a chat stream."""
    for data in data_of(events):
        if data == _DONE:
            continue
        if (problem := error_in(data)) is not None:
            raise EngineFailed(problem)
        yield from _read(data, "delta")


def pieces_in(body: bytes) -> list[Piece]:
    """The pieces of a whole chat completion."""
    return _read(body, "message")


def call_arguments(written: str) -> dict[str, Any]:
    """A tool call's arguments as the object that they must be; none at all are an empty one."""
    try:
        arguments = json.loads(written or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise EngineFailed("a tool call whose arguments are no JSON object")
    return arguments


def _read(answer: str | bytes, said: Literal["delta", "message"]) -> list[Piece]:
    try:
        return _pieces(json.loads(answer), said)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        raise EngineFailed(f"an answer that can't be read ({error!r})") from None


def _pieces(answer: Mapping[str, Any], said: Literal["delta", "message"]) -> list[Piece]:
    pieces = [_piece(choice, choice.get(said) or {}) for choice in answer.get("choices") or ()]
    if usage := answer.get("usage"):
        pieces.append(Piece(tokens=_tokens(usage)))
    return pieces


def _piece(choice: Mapping[str, Any], said: Mapping[str, Any]) -> Piece:
    stop = choice.get("stop_reason")  # vLLM's: a stop string, a token's number or nothing
    return Piece(
        choice=int(choice.get("index") or 0),
        text=_text(said.get("content")),
        thought=_text(said.get("reasoning_content") or said.get("reasoning")),
        calls=tuple(_call(call, position) for position, call in enumerate(said.get("tool_calls") or ())),
        finish_reason=_text(choice.get("finish_reason")) or None,
        stop=stop if isinstance(stop, str) else None,
        logprobs=_logprobs((choice.get("logprobs") or {}).get("content") or ()),
    )


def _call(call: Mapping[str, Any], position: int) -> CallPiece:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    return CallPiece(
        index=int(call.get("index", position)),
        id=_text(call.get("id")),
        name=_text(function.get("name")),
        arguments=json.dumps(arguments) if isinstance(arguments, dict) else _text(arguments),
    )


def _logprobs(told: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Each with a token, its logprob and a list, perhaps empty, of alternatives that have both too."""
    return tuple(
        {**_logprob(each), "top_logprobs": [_logprob(t) for t in each.get("top_logprobs") or ()]} for each in told
    )


def _logprob(told: Mapping[str, Any]) -> dict[str, Any]:
    """What is impossible, or was not computed, has no logprob: JSON has no word for infinity."""
    logprob = told["logprob"]
    finite = logprob is not None and math.isfinite(logprob)
    return {"token": _text(told["token"]), "logprob": logprob if finite else None, "bytes": told.get("bytes")}


def _tokens(usage: Mapping[str, Any]) -> Tokens:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return Tokens(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0), int(cached or 0))


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} where a text belongs")
    value.encode()  # half of a surrogate pair is no text
    return value
