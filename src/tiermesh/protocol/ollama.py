"""The part of Ollama's API that asks for answers and lists models.

Options that say how a machine loads a model (`num_ctx`, `num_gpu`, ...) and `keep_alive` are each node's own business:
they are taken and have no effect. Options that would change the answer and can't be had are refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from tiermesh.protocol.openai import Penalty, Stop, Temperature
from tiermesh.protocol.validation import Wire


def _format(value: object) -> object:
    """`format`: nothing, `json`, or a JSON schema."""
    if value in (None, "", "json") or isinstance(value, dict):
        return value
    raise ValueError('must be "json" or a JSON schema')


def _think(value: object) -> object:
    if value is None or isinstance(value, bool) or value in ("low", "medium", "high"):
        return value
    raise ValueError('must be a boolean, "low", "medium" or "high"')


Format = Annotated[Any, BeforeValidator(_format)]
Think = Annotated[Any, BeforeValidator(_think)]
ModelName = Annotated[str, Field(min_length=1, max_length=512)]


class OllamaOptions(Wire):
    """What changes an answer. `num_predict` of 0 or less: as many tokens as there is room for."""

    model_config = ConfigDict(extra="allow")

    temperature: Temperature | None = None
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = None
    num_predict: int | None = None
    stop: Stop = None
    repeat_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None


class OllamaFunction(Wire):
    """What is called; arguments are an object, not a text."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class OllamaCall(Wire):
    """`id` is given by newer clients only; results then name it in `tool_call_id`."""

    id: str | None = None
    function: OllamaFunction


class OllamaMessage(Wire):
    """One message. A tool's result names its tool, or its call, or answers the calls in their order."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: list[str] | None = None
    tool_calls: list[OllamaCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class _Asked(Wire):
    model_config = ConfigDict(extra="allow")

    model: ModelName
    stream: bool | None = None
    format: Format = None
    options: OllamaOptions | None = None
    think: Think = None
    keep_alive: float | int | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)


class OllamaChatRequest(_Asked):
    """`POST /api/chat`. Streams unless `stream` is false. No messages: load the model."""

    messages: list[OllamaMessage] | None = None
    tools: list[dict[str, Any]] | None = None


class OllamaGenerateRequest(_Asked):
    """`POST /api/generate`: one question. Streams unless `stream` is false. No prompt: load the model."""

    prompt: str | None = None
    system: str | None = None
    images: list[str] | None = None


class OllamaEmbedRequest(Wire):
    """`POST /api/embed`."""

    model_config = ConfigDict(extra="allow")

    model: ModelName
    input: str | list[str] = Field(...)
    dimensions: int | None = Field(None, ge=1)
    truncate: bool | None = None
    keep_alive: float | int | str | None = None


class OllamaShowRequest(Wire):
    """`POST /api/show`; `name` is how older clients say `model`."""

    model: str | None = None
    name: str | None = None


class OllamaError(Wire):
    """What every error looks like, in a stream too."""

    error: str
