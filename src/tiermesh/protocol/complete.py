"""`POST /api/complete`: the mesh's own way to ask.

With `stream: true` the answer is `text/event-stream`, every event one `data:` line of JSON with a `type`:

- `{"type": "delta", "content": "..."}`, as the text comes;
- `{"type": "done", ...}` once, last, with all fields of `CompleteResponse` (so `content` is the whole text);
- `{"type": "error", "error": {...}}` instead of `done` when the stream broke and nobody could go on.

A stream that ends with neither was cut.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from tiermesh.protocol.errors import ErrorDetail
from tiermesh.protocol.openai import MaxTokens, Penalty, Stop, Temperature, ToolChoice, TopP
from tiermesh.protocol.validation import Wire
from tiermesh.types import Tier


class Message(Wire):
    """One message. Only an assistant that calls tools may have no content."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content is missing; only an assistant message with tool_calls may leave it out")
        return self


class CompleteRequest(Wire):
    """`model` is a model's name, an alias, `tier:N` or `auto`. `tier` narrows `auto`, or prefers among equal names."""

    model_config = ConfigDict(extra="forbid")

    messages: list[Message] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    temperature: Temperature | None = None
    model: str = Field("auto", min_length=1, max_length=512)
    tier: Tier | None = None
    max_tokens: MaxTokens | None = None
    top_p: TopP | None = None
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stop: Stop = None
    seed: int | None = None
    stream: bool = False


class Usage(Wire):
    """Tokens, as the engine counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class CompleteResponse(Wire):
    """`node` is the name of the node that answered; `usage` is None where the engine did not count."""

    content: str | None
    tool_calls: list[dict[str, Any]] | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    model: str
    node: str
    tier: Tier


class CompleteDelta(Wire):
    """A piece of a stream."""

    type: Literal["delta"] = "delta"
    content: str


class CompleteDone(CompleteResponse):
    """The last event of a stream."""

    type: Literal["done"] = "done"


class CompleteError(Wire):
    """The last event of a stream that broke."""

    type: Literal["error"] = "error"
    error: ErrorDetail
