"""`POST /v1/responses`: the common subset, with the conversation in `input`.

Nothing is stored, so nothing can be referred to: `store: true`, `previous_response_id`, `conversation`, `background`
and item references are refused, and so are tools that OpenAI runs itself. Hints about caching and service are taken.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from tiermesh.protocol.openai import MaxTokens, Temperature, TopP
from tiermesh.protocol.validation import Wire


def _text_or_items(value: object) -> object:
    if isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(item, dict) for item in value)):
        return value
    raise ValueError("must be a text or a list of items, each an object")


def _choice(value: object) -> object:
    if value is None or isinstance(value, dict) or value in ("none", "auto", "required"):
        return value
    raise ValueError('must be "none", "auto", "required" or {"type": "function", "name": ...}')


class ResponseTool(Wire):
    """A function of the caller's own."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseText(Wire):
    """`format`: `text`, `json_object`, or `json_schema` with its name and schema."""

    model_config = ConfigDict(extra="allow")

    format: dict[str, Any] | None = None


class Reasoning(Wire):
    """`effort` goes to the engine."""

    model_config = ConfigDict(extra="allow")

    effort: str | None = None


class ResponsesRequest(Wire):
    """`model` may also be an alias, `tier:N` or `auto`."""

    model_config = ConfigDict(extra="allow")

    model: str = Field("auto", min_length=1, max_length=512)
    input: Annotated[Any, BeforeValidator(_text_or_items)] = Field(...)
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[ResponseTool] | None = None
    tool_choice: Annotated[Any, BeforeValidator(_choice)] = None
    parallel_tool_calls: bool | None = None
    text: ResponseText | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
