"""Between OpenAI's text completions and chat completions. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiermesh.daemon.api.refusing import refused
from tiermesh.daemon.api.said import Piece, Tokens
from tiermesh.daemon.sse import DONE, event
from tiermesh.errors import TiermeshError
from tiermesh.protocol.completions import MAX_PROMPTS, CompletionRequest
from tiermesh.protocol.errors import openai_error
from tiermesh.protocol.openai import ChatCompletionRequest
from tiermesh.protocol.validation import validated

Json = dict[str, Any]

_OF_CHATS = frozenset({"messages", "tools", "tool_choice", "functions", "function_call"})
"""Fields whose answers no completion could tell."""


def chat_bodies(asked: CompletionRequest) -> list[Json]:
    """One chat for each prompt. Raises `InvalidInput` that names the field."""
    _refuse_unsupported(asked)
    own = {"model", "prompt", "stream", "stream_options", "echo", "logprobs", "suffix", "best_of"}
    body = asked.model_dump(exclude_none=True, exclude=own)
    if asked.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": asked.logprobs}
    bodies = [{**body, "messages": [{"role": "user", "content": prompt}]} for prompt in asked.prompts]
    validated(ChatCompletionRequest, bodies[0])
    return bodies


@dataclass(slots=True)
class _Choice:
    text: str
    logprobs: Json | None = None
    finish_reason: str | None = None


@dataclass(slots=True)
class CompletionTelling:
    """The answers to one prompt. `first` is the index of the first of them among those to all prompts."""

    asked: CompletionRequest
    prompt: str
    model: str
    id: str
    created: int
    first: int = 0
    media_type: str = "text/event-stream"
    tokens: Tokens | None = None
    _choices: dict[int, _Choice] = field(default_factory=dict)

    def begin(self) -> bytes:
        return b""

    def take(self, piece: Piece) -> bytes:
        if piece.tokens is not None:
            self.tokens = piece.tokens
            return b""
        begins = piece.choice not in self._choices
        choice = self._choices.setdefault(piece.choice, _Choice(self.prompt if self.asked.echo else ""))
        offset = len(choice.text)
        text = choice.text + piece.text if begins else piece.text
        choice.text += piece.text
        choice.finish_reason = _reason(piece.finish_reason) or choice.finish_reason
        logprobs = _legacy(piece.logprobs, offset) if piece.logprobs else None
        choice.logprobs = _joined(choice.logprobs, logprobs)
        if not (text or logprobs or piece.finish_reason):
            return b""
        told = _choice(self.first + piece.choice, text, logprobs, _reason(piece.finish_reason))
        return event(json.dumps({**self._head(), "choices": [told]}))

    def end(self) -> bytes:
        options = self.asked.stream_options
        if options is None or not options.include_usage or self.tokens is None:
            return DONE
        return event(json.dumps({**self._head(), "choices": [], "usage": usage([self.tokens])})) + DONE

    def failed(self, error: TiermeshError) -> bytes:
        return event(json.dumps(openai_error(error).model_dump())) + DONE

    def body(self) -> Json:
        return {**self._head(), "choices": self.choices(), "usage": usage([self.tokens] if self.tokens else [])}

    def choices(self) -> list[Json]:
        """All of them, whole."""
        return [
            _choice(self.first + index, choice.text, choice.logprobs, choice.finish_reason)
            for index, choice in sorted(self._choices.items())
        ]

    def _head(self) -> Json:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}


def merged(tellings: Sequence[CompletionTelling]) -> Json:
    """The answers to all prompts, in the prompts' order."""
    choices = [choice for telling in tellings for choice in telling.choices()]
    counted = [telling.tokens for telling in tellings if telling.tokens is not None]
    return {**tellings[0].body(), "choices": choices, "usage": usage(counted)}


def usage(tokens: Sequence[Tokens]) -> Json | None:
    """None where no engine counted."""
    if not tokens:
        return None
    prompt, completion = sum(each.prompt for each in tokens), sum(each.completion for each in tokens)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _refuse_unsupported(asked: CompletionRequest) -> None:
    for name in _OF_CHATS & (asked.model_extra or {}).keys():
        raise refused(name, "is no field of a completion; ask /v1/chat/completions")
    if asked.suffix:
        raise refused("suffix", "is not supported: chat models don't fill in")
    if asked.best_of is not None and asked.best_of != (asked.n or 1):
        raise refused("best_of", "is not supported; ask for n answers and choose")
    if asked.echo and asked.logprobs is not None:
        raise refused("echo", "can't go with logprobs: those of the prompt are not known")
    if len(asked.prompts) > MAX_PROMPTS:
        raise refused("prompt", f"at most {MAX_PROMPTS} in one request")
    if asked.stream and len(asked.prompts) > 1:
        raise refused("prompt", "only one can be streamed; ask again for each")


def _choice(index: int, text: str, logprobs: Json | None, reason: str | None) -> Json:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _reason(reason: str | None) -> str | None:
    """There are no tools here, so whatever is neither of these is a normal end."""
    return reason if reason in (None, "length", "content_filter") else "stop"


def _legacy(told: Sequence[Mapping[str, Any]], offset: int) -> Json:
    """Lists side by side, one entry for each token; `text_offset` is where it begins in the choice's text."""
    offsets = []
    for each in told:
        offsets.append(offset)
        offset += len(each["token"])
    return {
        "tokens": [each["token"] for each in told],
        "token_logprobs": [each["logprob"] for each in told],
        "top_logprobs": [{top["token"]: top["logprob"] for top in each["top_logprobs"]} for each in told],
        "text_offset": offsets,
    }


def _joined(known: Json | None, more: Json | None) -> Json | None:
    if known is None or more is None:
        return more if known is None else known
    return {name: known[name] + more[name] for name in known}
