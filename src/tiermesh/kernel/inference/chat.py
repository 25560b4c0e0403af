"""From an OpenAI chat request to what the generator needs. What this kernel can't do is refused, never ignored."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from tiermesh.errors import ContextTooLong, InvalidInput
from tiermesh.kernel.inference.sequence import Sampling
from tiermesh.protocol.openai import ChatCompletionRequest, ChatMessage
from tiermesh.protocol.validation import validated

MAX_STOPS = 16
"""OpenAI allows 4; each one costs a search in every piece of text."""
MAX_STOP_CHARACTERS = 1024
"""Text is held back for as long as it may be a stop string."""
ROLES = ("system", "developer", "user", "assistant")

_IMPLEMENTED = frozenset(
    {"model", "messages", "stream", "stream_options", "temperature", "top_p", "max_tokens", "max_completion_tokens"}
    | {"stop", "seed"}
)
_Harmless = Callable[[object], bool]
_HARMLESS: Mapping[str, _Harmless] = {
    # Values that ask for nothing beyond what happens anyway; some clients always send them.
    "n": lambda value: value == 1,
    "frequency_penalty": lambda value: value == 0,
    "presence_penalty": lambda value: value == 0,
    "logit_bias": lambda value: value == {},
    "logprobs": lambda value: value is False,
    "top_logprobs": lambda value: value == 0,
    "response_format": lambda value: value == {"type": "text"},
    "tools": lambda value: value == [],
    "tool_choice": lambda value: value in ("none", "auto"),
    "parallel_tool_calls": lambda value: isinstance(value, bool),
    "user": lambda value: isinstance(value, str),
    "metadata": lambda value: isinstance(value, dict),
    "store": lambda value: value is False,
}


@dataclass(frozen=True, slots=True)
class Chat:
    """A request that was understood. `max_tokens` None: as many as the context has room for."""

    model: str
    messages: tuple[Mapping[str, str], ...]
    sampling: Sampling
    max_tokens: int | None
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool


def parse(body: object) -> Chat:
    """Validate a request. Raises `InvalidInput` that names the field."""
    request = validated(ChatCompletionRequest, body)
    _refuse_unsupported(request)
    limit = request.max_completion_tokens
    return Chat(
        model=request.model,
        messages=tuple(_message(index, message) for index, message in enumerate(request.messages)),
        sampling=Sampling(
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=secrets.randbits(63) if request.seed is None else request.seed,
        ),
        max_tokens=request.max_tokens if limit is None else limit,
        stops=_stops(request.stop),
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
    )


class Encoder:
    """Chat to tokens by the model's own template. Used by one thread at a time."""

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self._tokenizer = tokenizer
        self._context_length = context_length

    def encode(self, chat: Chat) -> tuple[list[int], int]:
        """The prompt's tokens and how many may follow.

        A user's text can't pose as a control token of the template. Raises `InvalidInput` where the template refuses
        (for instance two user turns in a row) and `ContextTooLong`.
        """
        tokens = self._apply_template(chat)
        room = self._context_length - len(tokens)
        if room < 1:
            raise ContextTooLong(
                f"messages: the prompt has {len(tokens)} tokens and {chat.model} has a context of "
                f"{self._context_length}; shorten the conversation or choose a model with a longer context",
                param="messages",
            )
        return tokens, room if chat.max_tokens is None else min(room, chat.max_tokens)

    def _apply_template(self, chat: Chat) -> list[int]:
        if self._tokenizer.chat_template is None:
            raise InvalidInput(f"model: {chat.model} has no chat template, so it can't chat", param="model")
        messages = [dict(message) for message in chat.messages]
        try:
            encoded = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, sanitize_control_tokens=True
            )
        except TemplateError as error:
            raise InvalidInput(
                f"messages: {chat.model} does not take this conversation: {error}", param="messages"
            ) from error
        return list(encoded["input_ids"])


def _refuse_unsupported(request: ChatCompletionRequest) -> None:
    """What was said and is neither implemented nor harmless."""
    said = {name: getattr(request, name) for name in request.model_fields_set} | dict(request.model_extra or {})
    for name, value in said.items():
        if value is None or name in _IMPLEMENTED or (name in _HARMLESS and _HARMLESS[name](value)):
            continue
        what = "this value is not supported" if name in _HARMLESS else "not a parameter that is supported"
        raise InvalidInput(f"{name}: {what} by the built-in kernel; leave it out", param=name)
    for name, value in ((request.stream_options and request.stream_options.model_extra) or {}).items():
        if value:
            raise InvalidInput(f"stream_options.{name}: not supported", param=f"stream_options.{name}")


def _message(index: int, message: ChatMessage) -> Mapping[str, str]:
    where = f"messages[{index}]"
    if message.role not in ROLES:
        raise InvalidInput(
            f"{where}.role: {message.role} is not supported by the built-in kernel", param=f"{where}.role"
        )
    extra = {"name": message.name, "tool_calls": message.tool_calls, "tool_call_id": message.tool_call_id}
    for name, value in (extra | dict(message.model_extra or {})).items():
        if value not in (None, [], {}, ""):
            raise InvalidInput(f"{where}.{name}: not supported by the built-in kernel", param=f"{where}.{name}")
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": _text(f"{where}.content", message.content)}


def _text(where: str, content: object) -> str:
    """A text, or parts that are all text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidInput(f"{where}: must be a text", param=where)
    texts = []
    for index, part in enumerate(content):
        if part["type"] != "text" or not isinstance(part.get("text"), str):
            raise InvalidInput(f"{where}[{index}]: only text parts are supported", param=f"{where}[{index}]")
        texts.append(part["text"])
    return "".join(texts)


def _stops(stop: object) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else ()
    if len(stops) > MAX_STOPS:
        raise InvalidInput(f"stop: at most {MAX_STOPS} strings", param="stop")
    if not all(0 < len(text) <= MAX_STOP_CHARACTERS for text in stops):
        raise InvalidInput(f"stop: each must have 1 to {MAX_STOP_CHARACTERS} characters", param="stop")
    return stops
