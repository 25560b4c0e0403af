"""`POST /v1/completions`: each prompt is what a user says, under the model's chat template.

`model`, sampling parameters and whatever isn't named here go to the engine as in a chat. What a chat can't do (token
ids as a prompt, `suffix`, `best_of`) is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from tiermesh.protocol.openai import MaxTokens, StreamOptions
from tiermesh.protocol.validation import Wire

MAX_PROMPTS = 16
"""In one request: as many as a node answers at the same time, or has room for in its queue."""


def _prompts(value: object) -> object:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(prompt, str) for prompt in value):
        return value
    raise ValueError("must be a text or a list of texts; token ids are not supported")


class CompletionRequest(Wire):
    """`logprobs` is how many alternatives to each token are told."""

    model_config = ConfigDict(extra="allow")

    model: str = Field("auto", min_length=1, max_length=512)
    prompt: Annotated[Any, BeforeValidator(_prompts)] = Field(...)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: MaxTokens | None = None
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    n: int | None = Field(None, ge=1)
    suffix: str | None = None
    best_of: int | None = None

    @property
    def prompts(self) -> list[str]:
        """All of them."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt
