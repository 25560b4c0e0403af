"""`POST /v1/messages`, as far as a mesh of open models can honour it.

What is a hint (`cache_control`, `metadata`, `service_tier`, `output_config.effort`) is taken and has no effect. What
would change the answer and can't be had (server tools, documents, containers, ...) is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from tiermesh.protocol.openai import MaxTokens, TopP, text_or_parts
from tiermesh.protocol.validation import Wire

Blocks = Annotated[Any, BeforeValidator(text_or_parts)]
"""A text, or a list of blocks, each an object with a `type`."""


class AnthropicMessage(Wire):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: Blocks = Field(...)


class AnthropicTool(Wire):
    """A tool of the caller's own; `type` is given by tools that Anthropic runs itself."""

    name: str = Field(min_length=1)
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None
    strict: bool | None = None


class AnthropicToolChoice(Wire):
    """`name` goes with `tool`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Wire):
    """May the model's thoughts be shown? How long it thinks is its own business."""

    type: Literal["enabled", "disabled", "adaptive"]


class OutputConfig(Wire):
    """`format` is a JSON schema that the answer must conform to."""

    format: dict[str, Any] | None = None


class MessagesRequest(Wire):
    """`model` may also be an alias, `tier:N` or `auto`."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1, max_length=512)
    max_tokens: MaxTokens
    messages: list[AnthropicMessage] = Field(min_length=1)
    system: Blocks = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: TopP | None = None
    top_k: int | None = Field(None, ge=0)
    stop_sequences: list[str] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class AnthropicErrorDetail(Wire):
    """`type` is Anthropic's."""

    type: str
    message: str


class AnthropicError(Wire):
    """`{"type": "error", "error": {...}}`."""

    type: Literal["error"] = "error"
    error: AnthropicErrorDetail
