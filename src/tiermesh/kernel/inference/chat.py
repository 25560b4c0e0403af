"""From an OpenAI chat request to what the generator needs. What this kernel can't do is refused, never ignored."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field

from tiermesh.errors import InvalidInput
from tiermesh.kernel.inference.messages import Message, understood
from tiermesh.kernel.inference.sequence import Sampling
from tiermesh.kernel.inference.tools.definitions import Toolbox, toolbox
from tiermesh.protocol.openai import ChatCompletionRequest
from tiermesh.protocol.validation import validated

MAX_STOPS = 16
"""OpenAI allows 4; each one costs a search in every piece of text."""
MAX_STOP_CHARACTERS = 1024
"""Text is held back for as long as it may be a stop string."""
MAX_N = 16
"""Answers to one request: as many as are computed at the same time."""
MAX_TOP_LOGPROBS = 20
"""OpenAI's bound."""
MAX_BIASES = 1024
"""Enough to forbid a word list; each one costs time with every token."""
MAX_TOKEN_DIGITS = 9
"""Of a token's number in `logit_bias`: no vocabulary has a thousand million."""
MIN_REPETITION_PENALTY = 0.01
"""Logits are divided by it, and must stay numbers."""

_Harmless = Callable[[object], bool]
_HARMLESS: Mapping[str, _Harmless] = {
    # Values that ask for nothing beyond what happens anyway; some clients always send them.
    "metadata": lambda value: isinstance(value, dict),
    "store": lambda value: value is False,
}


class KernelRequest(ChatCompletionRequest):
    """OpenAI's request, the parameters that open models' servers have in common, and the mesh's own two.

    `return_token_ids` puts `token_ids` beside the text; `resume_token_ids` are those of an answer that was cut off:
    the new one begins after them.
    """

    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=MIN_REPETITION_PENALTY, le=10)
    return_token_ids: bool | None = None
    resume_token_ids: list[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A request that was understood. `max_tokens` None: as many as the context has room for.

    `answer_schema` is what an answer that calls no tool must conform to.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    max_tokens: int | None
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    n: int
    toolbox: Toolbox
    answer_schema: Mapping[str, Any] | None
    token_ids: bool
    resumed: tuple[int, ...]

    def sampling_of(self, index: int) -> Sampling:
        """How the answer with this index is sampled: from a seed of its own, the first one's being the request's."""
        if index == 0:
            return self.sampling
        digest = hashlib.blake2b(f"{self.sampling.seed}:{index}".encode(), digest_size=8).digest()
        return replace(self.sampling, seed=int.from_bytes(digest, "big") >> 1)


def parse(body: object) -> Chat:
    """Validate a request. Raises `InvalidInput` that names the field."""
    request = validated(KernelRequest, body)
    _refuse_unsupported(request)
    limit = request.max_completion_tokens
    return Chat(
        model=request.model,
        messages=understood(request.messages),
        sampling=_sampling(request),
        max_tokens=request.max_tokens if limit is None else limit,
        stops=_stops(request.stop),
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        n=_n(request),
        toolbox=toolbox(request),
        answer_schema=_answer_schema(request.response_format or {"type": "text"}),
        token_ids=bool(request.return_token_ids),
        resumed=tuple(request.resume_token_ids or ()),
    )


def refuse_unknown(extra: Mapping[str, object]) -> None:
    """What was said and is neither a parameter of ours nor harmless. Raises `InvalidInput` that names it."""
    for name, value in extra.items():
        if value is None or (name in _HARMLESS and _HARMLESS[name](value)):
            continue
        what = "this value is not supported" if name in _HARMLESS else "not a parameter that is supported"
        raise InvalidInput(f"{name}: {what} by the built-in kernel; leave it out", param=name)


def _refuse_unsupported(request: KernelRequest) -> None:
    refuse_unknown(request.model_extra or {})
    for name, value in ((request.stream_options and request.stream_options.model_extra) or {}).items():
        if value:
            raise InvalidInput(f"stream_options.{name}: not supported", param=f"stream_options.{name}")


def _sampling(request: KernelRequest) -> Sampling:
    return Sampling(
        temperature=_given(request.temperature, 1.0),
        seed=secrets.randbits(63) if request.seed is None else request.seed,
        top_p=_given(request.top_p, 1.0),
        top_k=max(0, request.top_k or 0),
        min_p=_given(request.min_p, 0.0),
        repetition_penalty=_given(request.repetition_penalty, 1.0),
        presence_penalty=_given(request.presence_penalty, 0.0),
        frequency_penalty=_given(request.frequency_penalty, 0.0),
        logit_bias=_biases(request.logit_bias or {}),
        logprobs=_logprobs(request),
    )


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _logprobs(request: KernelRequest) -> int | None:
    wanted = request.top_logprobs or 0
    if wanted > MAX_TOP_LOGPROBS:
        raise InvalidInput(f"top_logprobs: at most {MAX_TOP_LOGPROBS}", param="top_logprobs")
    if wanted and not request.logprobs:
        raise InvalidInput("top_logprobs: needs logprobs to be true", param="top_logprobs")
    return wanted if request.logprobs else None


def _biases(given: Mapping[str, float]) -> Mapping[int, float]:
    if len(given) > MAX_BIASES:
        raise InvalidInput(f"logit_bias: at most {MAX_BIASES} tokens", param="logit_bias")
    for token, bias in given.items():
        number = token.isascii() and token.isdigit() and len(token) <= MAX_TOKEN_DIGITS
        if not number or not -100 <= bias <= 100:
            raise InvalidInput("logit_bias: must map token ids to numbers from -100 to 100", param="logit_bias")
    return {int(token): bias for token, bias in given.items()}


def _n(request: KernelRequest) -> int:
    n = request.n or 1
    if n > MAX_N:
        raise InvalidInput(f"n: at most {MAX_N}", param="n")
    if n > 1 and (request.stream or request.resume_token_ids):
        raise InvalidInput("n: only one answer can be streamed or resumed; ask again for each", param="n")
    return n


def _answer_schema(wanted: Mapping[str, Any]) -> Mapping[str, Any] | None:
    match wanted:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return schema
        case {"type": "json_schema"}:
            where = "response_format.json_schema.schema"
            raise InvalidInput(f"{where}: must be a JSON schema", param=where)
    raise InvalidInput("response_format.type: must be text, json_object or json_schema", param="response_format.type")


def _stops(stop: object) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else ()
    if len(stops) > MAX_STOPS:
        raise InvalidInput(f"stop: at most {MAX_STOPS} strings", param="stop")
    if not all(0 < len(text) <= MAX_STOP_CHARACTERS for text in stops):
        raise InvalidInput(f"stop: each must have 1 to {MAX_STOP_CHARACTERS} characters", param="stop")
    return stops
