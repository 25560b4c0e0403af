"""One question in every API that a node speaks, and what is in the bytes that come back. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
DONE = "[DONE]"


@dataclass(slots=True)
class Reading:
    """What bytes say. `ended`: they say themselves that they are all; `error`: that it went wrong, and how."""

    text: str = ""
    tokens: int | None = None
    ended: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Dialect:
    """`body` takes model, question, tokens, and a number in (0, 1] that makes no two requests alike: of the tokens that
    make up so much of all likelihood the best one is always one, so that greedy answers don't depend on it. `read`
    raises `ValueError`, `LookupError` or `TypeError` for what no node may send."""

    name: str
    path: str
    body: Callable[[str, str, int, float], Json]
    read: Callable[[bytes], Reading]


def read_refusal(body: bytes) -> str | None:
    """The reason in an answer that is not 200, in any API's shape; None: it has none."""
    try:
        told = json.loads(body)
    except ValueError:
        return None
    return _reason(told) if isinstance(told, dict) else None


def _chat_body(model: str, text: str, tokens: int, share: float) -> Json:
    said = {"messages": [{"role": "user", "content": text}]}
    return {"model": model, **said, "max_tokens": tokens, "temperature": 0, "top_p": share}


def _completion_body(model: str, text: str, tokens: int, share: float) -> Json:
    return {"model": model, "prompt": text, "max_tokens": tokens, "temperature": 0, "top_p": share}


def _ollama_body(model: str, text: str, tokens: int, share: float) -> Json:
    options = {"num_predict": tokens, "temperature": 0, "top_p": share}
    return {"model": model, "messages": [{"role": "user", "content": text}], "options": options}


def _response_body(model: str, text: str, tokens: int, share: float) -> Json:
    return {"model": model, "input": text, "max_output_tokens": tokens, "temperature": 0, "top_p": share}


def _streamed(body: Callable[[str, str, int, float], Json], **more: Any) -> Callable[[str, str, int, float], Json]:
    return lambda *asked: {**body(*asked), "stream": True, **more}


def _whole(body: Callable[[str, str, int, float], Json]) -> Callable[[str, str, int, float], Json]:
    return lambda *asked: {**body(*asked), "stream": False}


def _events(received: bytes) -> Iterator[str]:
    """The data of every event that is complete."""
    for event in received.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]:
        lines = [line for line in event.decode().split("\n") if line.startswith("data:")]
        if lines:
            yield "\n".join(line.removeprefix("data:").removeprefix(" ") for line in lines)


def _read_stream(take: Callable[[Reading, Json], None]) -> Callable[[bytes], Reading]:
    """Of events that are JSON. What comes after the end is a mistake."""

    def read(received: bytes) -> Reading:
        reading = Reading()
        for data in _events(received):
            if reading.ended:
                raise ValueError(f"something after the end: {data[:100]}")
            if data == DONE:
                reading.ended = True
            else:
                _take(reading, json.loads(data), take)
        return reading

    return read


def _read_lines(received: bytes) -> Reading:
    reading = Reading()
    for line in received.split(b"\n")[:-1]:
        if reading.ended:
            raise ValueError(f"something after the end: {line[:100]!r}")
        _take(reading, json.loads(line), _take_ollama)
    return reading


def _read_whole(take: Callable[[Reading, Json], None]) -> Callable[[bytes], Reading]:
    def read(received: bytes) -> Reading:
        reading = Reading()
        try:
            told = json.loads(received)
        except ValueError:
            return reading  # cut off
        _take(reading, told, take)
        reading.ended = True
        return reading

    return read


def _take(reading: Reading, told: Json, take: Callable[[Reading, Json], None]) -> None:
    if told.get("error") is not None or told.get("type") == "error":
        reading.error = _reason(told) or "an error without a reason"
    else:
        take(reading, told)


def _take_chat(reading: Reading, told: Json) -> None:
    for choice in told["choices"]:
        reading.text += (choice.get("delta") or choice.get("message") or {}).get("content") or choice.get("text") or ""
    if told.get("usage"):
        reading.tokens = told["usage"]["completion_tokens"]


def _take_complete(reading: Reading, told: Json) -> None:
    if told.get("type") == "delta":
        reading.text += told["content"]
        return
    if reading.text not in ("", told["content"]):
        raise ValueError("the whole differs from its pieces")
    reading.text, reading.tokens, reading.ended = told["content"], told["usage"]["completion_tokens"], True


def _take_message(reading: Reading, told: Json) -> None:
    match told["type"]:
        case "content_block_delta":
            reading.text += told["delta"]["text"]
        case "message_delta":
            reading.tokens = told["usage"]["output_tokens"]
        case "message_stop":
            reading.ended = True
        case "message":
            reading.text = "".join(block["text"] for block in told["content"])
            reading.tokens = told["usage"]["output_tokens"]


def _take_response(reading: Reading, told: Json) -> None:
    match told.get("type"):
        case "response.output_text.delta":
            reading.text += told["delta"]
        case "response.completed" | "response.incomplete":
            reading.tokens, reading.ended = told["response"]["usage"]["output_tokens"], True


def _take_ollama(reading: Reading, told: Json) -> None:
    reading.text += told["message"]["content"]
    if told["done"]:
        reading.tokens, reading.ended = told["eval_count"], True


def _reason(told: Mapping[str, Any]) -> str | None:
    """Code or type and words, as far as the API has them."""
    error = told.get("error")
    if isinstance(error, str):
        return error or None
    if not isinstance(error, Mapping) or not error.get("message"):
        return None
    return f"{error.get('code') or error.get('type')}: {error['message']}"


_USAGE = {"stream_options": {"include_usage": True}}

DIALECTS = (
    Dialect("chat, streamed", "/v1/chat/completions", _streamed(_chat_body, **_USAGE), _read_stream(_take_chat)),
    Dialect("chat", "/v1/chat/completions", _whole(_chat_body), _read_whole(_take_chat)),
    Dialect(
        "completions, streamed", "/v1/completions", _streamed(_completion_body, **_USAGE), _read_stream(_take_chat)
    ),
    Dialect("complete, streamed", "/api/complete", _streamed(_chat_body), _read_stream(_take_complete)),
    Dialect("complete", "/api/complete", _whole(_chat_body), _read_whole(_take_complete)),
    Dialect("messages, streamed", "/v1/messages", _streamed(_chat_body), _read_stream(_take_message)),
    Dialect("responses, streamed", "/v1/responses", _streamed(_response_body), _read_stream(_take_response)),
    Dialect("ollama, streamed", "/api/chat", _streamed(_ollama_body), _read_lines),
    Dialect("ollama", "/api/chat", _whole(_ollama_body), _read_whole(_take_ollama)),
)
