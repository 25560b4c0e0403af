"""From a request that the kernel understands to one that llama.cpp's server does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tiermesh.errors import InvalidInput
from tiermesh.kernel.inference import chat

SEEDS = 2**32 - 1
"""llama.cpp has seeds of 32 bits, of which the last one stands for none."""
PASSED_ON = ("messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "stream_options")
REFUSED: Mapping[str, str] = {
    "return_token_ids": "its streams carry no token ids",
    "resume_token_ids": "it can't go on with an answer that was cut off",
}


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the loaded model can do. `context_length` is one slot's; `tools`: does its template know of them?"""

    context_length: int
    tools: bool


def translate(body: object, abilities: Abilities) -> Mapping[str, Any]:
    """The same request with every default said. Raises `InvalidInput` that names the field."""
    asked = chat.parse(body)
    assert isinstance(body, dict), "parse() takes nothing else"
    for name, why in REFUSED.items():
        if body.get(name):
            raise InvalidInput(f"{name}: this model is computed by llama.cpp, and {why}", param=name)
    if asked.n > 1:
        raise InvalidInput("n: a model that is computed by llama.cpp gives one answer to a request", param="n")
    if body.get("tools") and body.get("tool_choice") != "none" and not abilities.tools:
        raise InvalidInput("tools: this model's template knows nothing of tools", param="tools")
    return {
        **{name: body[name] for name in PASSED_ON if body.get(name) is not None},
        **_forced_tool(body),
        "stream": asked.stream,
        "max_tokens": -1 if asked.max_tokens is None else asked.max_tokens,
        "stop": list(asked.stops),
        **_sampling(asked),
        "repeat_last_n": abilities.context_length,  # Penalties look at all there is, not at the last 64 tokens.
    }


def _forced_tool(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool that is asked for by name: the only one there is, and required."""
    choice = body.get("tool_choice")
    if not isinstance(choice, dict):
        return {}
    name = choice["function"]["name"]
    return {"tools": [tool for tool in body["tools"] if tool["function"]["name"] == name], "tool_choice": "required"}


def _sampling(asked: chat.Chat) -> Mapping[str, Any]:
    sampling = asked.sampling
    logprobs = {} if sampling.logprobs is None else {"logprobs": True, "top_logprobs": sampling.logprobs}
    return {
        "temperature": sampling.temperature,
        "seed": sampling.seed % SEEDS,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": [[token, bias] for token, bias in sampling.logit_bias.items()],
        **logprobs,
    }
