"""OpenAI's shapes for what the kernel says."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from tiermesh.errors import InvalidInput, TiermeshError
from tiermesh.kernel.inference.sequence import FinishReason

Json = Mapping[str, object]
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer's identity; every chunk of a stream carries it."""

    model: str
    prompt_tokens: int
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, reason: FinishReason, completion_tokens: int) -> Json:
        """The body of an answer that is not streamed."""
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self.usage(completion_tokens)}

    def chunk(self, delta: Json, reason: FinishReason | None = None) -> Json:
        """One chunk of a stream."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, completion_tokens: int) -> Json:
        """The last chunk of a stream whose client asked for usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage(completion_tokens)}

    def usage(self, completion_tokens: int) -> Json:
        """What was computed, in tokens."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        }

    def _head(self, kind: str) -> dict[str, object]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def event(data: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def error_body(error: TiermeshError) -> Json:
    """`{"error": ...}` as OpenAI's clients read it."""
    mine = isinstance(error, InvalidInput)
    kind = "invalid_request_error" if mine else "server_error"
    param = error.param if isinstance(error, InvalidInput) else None
    return {"error": {"message": str(error), "type": kind, "param": param, "code": error.type}}


def model_list(name: str, digest: str) -> Json:
    """`GET /v1/models`."""
    card = {"id": name, "object": "model", "created": 0, "owned_by": "tiermesh", "digest": digest}
    return {"object": "list", "data": [card]}
