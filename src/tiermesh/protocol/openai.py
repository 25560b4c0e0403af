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


def choice_or_name(value: object) -> object:
    """`tool_choice`: `none`, `auto`, `required`, or an object that names a function."""
    if value is None or isinstance(value, dict) or value in ("none", "auto", "required"):
        return value
    raise ValueError('must be "none", "auto", "required" or {"type": "function", "function": {"name": ...}}')


def texts_or_tokens(value: object) -> object:
    """`input` of an embedding: a text, a list of texts, a list of token ids, or a list of such lists."""
    listed: list[Any] = value if isinstance(value, list) else [value]
    nested = bool(listed) and all(isinstance(item, list) for item in listed)
    rows = listed if nested else [listed]
    kinds = {type(item) for row in rows for item in row}
    allowed = ({int},) if nested else ({int}, {str})
    if isinstance(value, int) or not all(rows) or kinds not in allowed or "" in listed:
        raise ValueError("must be a text, a list of texts, or one or more lists of token ids, none of them empty")
    return value


Stop = Annotated[Any, BeforeValidator(one_or_many_strings)]
Content = Annotated[Any, BeforeValidator(text_or_parts)]
ToolChoice = Annotated[Any, BeforeValidator(choice_or_name)]
EmbeddingInput = Annotated[Any, BeforeValidator(texts_or_tokens)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
MaxTokens = Annotated[int, Field(ge=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


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
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    user: str | None = None


class EmbeddingRequest(Wire):
    """`POST /v1/embeddings`. `model` as for a chat."""

    model_config = ConfigDict(extra="allow")

    model: str = Field("auto", min_length=1, max_length=512)
    input: EmbeddingInput
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
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
