"""The part of OpenAI's API that a mesh must understand to route; everything else is passed on as it came."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator

from tiermesh.protocol.validation import Wire

ChatRole = Literal["system", "developer", "user", "assistant", "tool", "function"]


def one_or_many_strings(value: object) -> object:
    """`stop`: a string, a list of strings, or nothing."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise ValueError("must be a string or a list of strings")


def text_or_parts(value: object) -> object:
    """`content`: a string, a list of parts (objects with a `type`), or nothing."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in value):
        return value
    raise ValueError("must be a string or a list of parts, each an object with a `type`")


Stop = Annotated[Any, BeforeValidator(one_or_many_strings)]
Content = Annotated[Any, BeforeValidator(text_or_parts)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
MaxTokens = Annotated[int, Field(ge=1)]


class ChatMessage(Wire):
    """One message; only an assistant that calls tools may say nothing."""

    model_config = ConfigDict(extra="allow")

    role: ChatRole
    content: Content = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @field_validator("tool_calls")
    @classmethod
    def _some(cls, value: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        return value or None


class StreamOptions(Wire):
    """What a stream carries besides text."""

    model_config = ConfigDict(extra="allow")

    include_usage: bool | None = None


class ChatCompletionRequest(Wire):
    """`POST /v1/chat/completions`. `model` may also be an alias, `tier:N` or `auto`."""

    model_config = ConfigDict(extra="allow")

    model: str = Field("auto", min_length=1, max_length=512)
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    n: int | None = Field(None, ge=1)
    stop: Stop = None
    seed: int | None = None
    tools: list[dict[str, Any]] | None = None
    user: str | None = None


class ModelCard(Wire):
    """One entry of `GET /v1/models`; `owned_by` names the nodes that have it."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "tiermesh"


class ModelList(Wire):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
