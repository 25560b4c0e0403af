"""What is asked, and what must come back, byte by byte. Every request has a number, and its answer names it."""

from __future__ import annotations

import json
import re

MODEL = "bench"

EXPLANATION = "You are a helpful assistant. Answer in one short paragraph, in plain words, and name your sources. " * 4
"""With it a request is as long as a short chat is."""

WORDS = "The answer to it is that a mesh of machines answers as one. "
_NUMBER = re.compile(rb"question (\d+)")
_EVENTS = re.compile(rb'"max_tokens": ?(\d+)')
_STREAM = re.compile(rb'"stream": ?true')


def question(number: int, *, events: int | None = None) -> bytes:
    """A chat request; with `events`, for a stream of so many pieces."""
    body: dict[str, object] = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": EXPLANATION},
            {"role": "user", "content": f"This is question {number}. What do you say to it?"},
        ],
        "temperature": 0.7,
    }
    if events is not None:
        body |= {"stream": True, "max_tokens": events}
    return json.dumps(body).encode()


def asked(body: bytes) -> tuple[int, int | None]:
    """Number and, for a stream, events of a request, whoever has rewritten it. Raises `ValueError`."""
    number, events = _NUMBER.search(body), _EVENTS.search(body)
    if number is None:
        raise ValueError("no numbered question")
    return int(number[1]), int(events[1]) if events and _STREAM.search(body) else None


def answer(number: int) -> bytes:
    """The whole answer to a question."""
    return _ANSWER.replace(b"NUMBER", b"%d" % number)


def events_of(number: int, count: int) -> list[bytes]:
    """The stream of a question: `count` pieces of text, then the end."""
    pieces = [_EVENT % (number, number, index) for index in range(count)]
    return [*pieces, _LAST_EVENT % number, b"data: [DONE]\n\n"]


def text_of(body: bytes) -> str:
    """What an answer or a stream says, however it is written."""
    if not body.startswith(b"data:"):
        return str(json.loads(body)["choices"][0]["message"]["content"])
    told = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ") and line != "data: [DONE]"]
    deltas = [choice["delta"] for data in told for choice in json.loads(data)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def _event(delta: dict[str, str], finish: str | None) -> bytes:
    chunk = {
        "id": "chatcmpl-%d",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


_EVENT, _LAST_EVENT = _event({"content": " %d:%d"}, None), _event({}, "stop")
"""Made once: an upstream that is slow to speak would hide who else is."""

_ANSWER = json.dumps(
    {
        "id": "chatcmpl-NUMBER",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": f"You asked question NUMBER. {WORDS * 6}"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 90, "completion_tokens": 80, "total_tokens": 170},
    }
).encode()
