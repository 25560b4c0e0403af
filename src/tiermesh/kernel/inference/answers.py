"""OpenAI's shapes for what the kernel says."""

from __future__ import annotations

import base64
import json
import secrets
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tiermesh.errors import InvalidInput, TiermeshError
from tiermesh.kernel.inference.sequence import Choice
from tiermesh.kernel.inference.transcript import CallPart, Part

Json = Mapping[str, object]
BytesOf = Callable[[int], bytes]
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer's identity, which every chunk of a stream carries, and what its client wants beside the text.

    `bytes_of` None: no logprobs.
    """

    model: str
    prompt_tokens: int
    token_ids: bool = False
    bytes_of: BytesOf | None = None
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, parts: Sequence[Part], usage: Json) -> Json:
        """The body of an answer that is not streamed: one choice for each part."""
        choices = [
            self._choice(index, part, {"message": _message(part)}, finished=True) for index, part in enumerate(parts)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage}

    def chunk(self, part: Part, *, first: bool = False) -> Json:
        """One chunk of a stream."""
        delta: dict[str, object] = {"role": "assistant"} if first else {}
        if part.content or first:
            delta["content"] = part.content
        if part.calls:
            delta["tool_calls"] = [_call_delta(call) for call in part.calls]
        choice = self._choice(0, part, {"delta": delta}, finished=False)
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, usage: Json) -> Json:
        """The last chunk of a stream whose client asked for usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def usage(self, completion_tokens: int, cached_tokens: int) -> Json:
        """What was computed, in tokens; `cached_tokens` of the prompt were not."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        }

    def _head(self, kind: str) -> dict[str, object]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, index: int, part: Part, said: Json, *, finished: bool) -> Json:
        logprobs = None
        if self.bytes_of is not None and (part.choices or finished):
            logprobs = {"content": [_logprob(choice, self.bytes_of) for choice in part.choices], "refusal": None}
        ids = {"token_ids": part.token_ids} if self.token_ids else {}
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": part.reason, **ids}


def event(data: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def error_body(error: TiermeshError) -> Json:
    """`{"error": ...}` as OpenAI's clients read it."""
    mine = isinstance(error, InvalidInput)
    kind = "invalid_request_error" if mine else "server_error"
    param = error.param if isinstance(error, InvalidInput) else None
    return {"error": {"message": str(error), "type": kind, "param": param, "code": error.type}}


def model_list(name: str, digest: str, adapters: Iterable[str]) -> Json:
    """`GET /v1/models`."""
    base = {"id": name, "object": "model", "created": 0, "owned_by": "tiermesh", "digest": digest}
    return {"object": "list", "data": [base, *({**base, "id": adapter, "parent": name} for adapter in adapters)]}


def embeddings(model: str, vectors: Sequence[Sequence[float]], tokens: int, *, as_base64: bool) -> Json:
    """`POST /v1/embeddings`."""
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if as_base64 else vector}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _message(part: Part) -> Json:
    message: dict[str, object] = {"role": "assistant", "content": part.content}
    if part.calls:
        message["content"] = part.content or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in part.calls
        ]
    return message


def _call_delta(call: CallPart) -> Json:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _logprob(choice: Choice, bytes_of: BytesOf) -> Json:
    top = [_token(token, logprob, bytes_of) for token, logprob in choice.alternatives]
    return {**_token(choice.token, choice.logprob, bytes_of), "top_logprobs": top}


def _token(token: int, logprob: float | None, bytes_of: BytesOf) -> Json:
    raw = bytes_of(token)
    return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
