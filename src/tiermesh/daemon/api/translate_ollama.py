"""Between Ollama's chat and generate and a chat completion. Pure; `now` gives monotonic seconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from tiermesh.daemon.api.refusing import refuse_unknown, refused
from tiermesh.daemon.api.said import CallPiece, Piece, Tokens, call_arguments
from tiermesh.errors import EngineFailed, TiermeshError
from tiermesh.protocol.ollama import (
    OllamaChatRequest,
    OllamaError,
    OllamaGenerateRequest,
    OllamaMessage,
    OllamaOptions,
)

Json = dict[str, Any]
Asked = OllamaChatRequest | OllamaGenerateRequest

PATHS = ("/api/chat", "/api/generate", "/api/embed", "/api/tags", "/api/ps", "/api/show", "/api/version")
"""Routes that speak this dialect, in errors too."""

LOADING_OPTIONS = frozenset(
    {
        "numa",
        "num_ctx",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "low_vram",
        "f16_kv",
        "logits_all",
        "vocab_only",
        "use_mmap",
        "use_mlock",
        "embedding_only",
        "num_thread",
        "num_keep",
    }
)
"""How a machine loads a model and makes room: each node's own business."""

NEUTRAL_OPTIONS: Mapping[str, object] = {
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "tfs_z": 1.0,
    "typical_p": 1.0,
    "repeat_last_n": 64,
    "penalize_newline": True,
}
"""Ollama's defaults of what can't be had here: some clients always send them."""

_IMAGES: Mapping[str, str] = {"iVBORw0KGgo": "png", "/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp"}
"""How each kind of image begins in base64."""


def error_body(error: TiermeshError) -> Json:
    """An error as Ollama's clients read it."""
    return OllamaError(error=str(error)).model_dump()


def chat_body(asked: OllamaChatRequest) -> Json:
    """The same request as a chat completion's body. Raises `InvalidInput` that names the field."""
    tools = {"tools": asked.tools} if asked.tools else {}
    return {"messages": _conversation(asked.messages or ()), **tools, **_settings(asked)}


def generate_body(asked: OllamaGenerateRequest) -> Json:
    """A prompt is what a user says, after what the system says, as Ollama's own templates have it."""
    system = [{"role": "system", "content": asked.system}] if asked.system else []
    user = {"role": "user", "content": _content(asked.prompt or "", asked.images or (), "images")}
    return {"messages": [*system, user], **_settings(asked)}


class OllamaTelling:
    """An answer as lines of JSON, the last of which is `done`. Calls are told whole, in one line before it.

    `created_at` is an ISO 8601 time. Durations are as seen from here: prompt until the first piece, answer from there.
    """

    media_type = "application/x-ndjson"

    def __init__(
        self,
        asked: Asked,
        model: str,
        *,
        said_in: Literal["message", "response"],
        created_at: str,
        now: Callable[[], float],
        asked_at: float,
    ) -> None:
        self._said_in = said_in
        self._head = {"model": model, "created_at": created_at}
        self._shows_thoughts = asked.think is not False
        self._streamed = asked.stream is not False
        self._now, self._asked_at = now, asked_at
        self._first_at: float | None = None
        self._text = ""
        self._thought = ""
        self._calls: dict[int, CallPiece] = {}
        self._logprobs: list[Mapping[str, Any]] = []
        self._reason: str | None = None
        self._tokens: Tokens | None = None
        self._final: Json = {}

    def begin(self) -> bytes:
        return b""

    def take(self, piece: Piece) -> bytes:
        if self._first_at is None:
            self._first_at = self._now()
        self._tokens = piece.tokens or self._tokens
        self._reason = piece.finish_reason or self._reason
        for call in piece.calls:
            self._take_call(call)
        thought = piece.thought if self._shows_thoughts else ""
        self._text += piece.text
        self._thought += thought
        self._logprobs.extend(piece.logprobs)
        if not (piece.text or thought or piece.logprobs):
            return b""
        return _line({**self._head, **self._said(piece.text, thought), **_told(piece.logprobs), "done": False})

    def end(self) -> bytes:
        self._final = {"done": True, "done_reason": "length" if self._reason == "length" else "stop", **self._counts()}
        calls = self._whole_calls()
        line = _line({**self._head, **self._said("", "", calls), "done": False}) if calls else b""
        return line + _line({**self._head, **self._said("", ""), **self._final})

    def failed(self, error: TiermeshError) -> bytes:
        return _line(error_body(error))

    def body(self) -> Json:
        said = self._said(self._text, self._thought, self._whole_calls())
        return {**self._head, **said, **_told(self._logprobs), **self._final}

    def _said(self, text: str, thought: str, calls: Sequence[Json] = ()) -> Json:
        thinking = {"thinking": thought} if thought else {}
        if self._said_in == "response":
            return {"response": text, **thinking}
        called = {"tool_calls": calls} if calls else {}
        return {"message": {"role": "assistant", "content": text, **thinking, **called}}

    def _take_call(self, piece: CallPiece) -> None:
        known = self._calls.get(piece.index, CallPiece(piece.index))
        self._calls[piece.index] = CallPiece(
            piece.index, piece.id or known.id, known.name + piece.name, known.arguments + piece.arguments
        )

    def _whole_calls(self) -> list[Json]:
        """A call cut off at the limit of tokens is none; that it was cut `done_reason` says."""
        calls = []
        for index in sorted(self._calls):
            call = self._calls[index]
            try:
                function = {"index": index, "name": call.name, "arguments": call_arguments(call.arguments)}
            except EngineFailed:
                if self._reason != "length":
                    raise
                continue
            calls.append({"id": call.id, "function": function})
        return calls

    def _counts(self) -> Json:
        """A whole answer comes in one piece, so that nobody sees when its first word was there."""
        now = self._now()
        counts: Json = {"total_duration": _ns(now - self._asked_at), "load_duration": 0}
        if self._streamed:
            first = now if self._first_at is None else self._first_at
            counts |= {"prompt_eval_duration": _ns(first - self._asked_at), "eval_duration": _ns(now - first)}
        if self._tokens is not None:
            counts |= {"prompt_eval_count": self._tokens.prompt, "eval_count": self._tokens.completion}
        return counts


def _line(data: Json) -> bytes:
    return json.dumps(data).encode() + b"\n"


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _told(logprobs: Sequence[Mapping[str, Any]]) -> Json:
    return {"logprobs": list(logprobs)} if logprobs else {}


def _settings(asked: Asked) -> Json:
    refuse_unknown(asked, frozenset())
    options = asked.options or OllamaOptions()
    _refuse_options(options)
    limit = options.num_predict if options.num_predict is not None and options.num_predict > 0 else None
    settings = {
        "temperature": options.temperature,
        "top_p": options.top_p or None,  # 0 is how some clients say "off"
        "top_k": options.top_k,
        "min_p": options.min_p,
        "seed": options.seed,
        "max_tokens": limit,
        "stop": options.stop or None,
        "repetition_penalty": options.repeat_penalty,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "logprobs": asked.logprobs or None,
        "top_logprobs": asked.top_logprobs if asked.logprobs else None,
        "reasoning_effort": "medium" if asked.think is True else asked.think or None,
        "response_format": _response_format(asked.format),
    }
    return {name: value for name, value in settings.items() if value is not None}


def _refuse_options(options: OllamaOptions) -> None:
    for name, value in (options.model_extra or {}).items():
        if name in LOADING_OPTIONS or value is None or value == NEUTRAL_OPTIONS.get(name):
            continue
        raise refused(f"options.{name}", "is not supported by this mesh; leave it out")


def _response_format(wanted: str | Json | None) -> Json | None:
    if not wanted:
        return None
    if wanted == "json":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted, "strict": True}}


def _conversation(messages: Iterable[OllamaMessage]) -> list[Json]:
    """Calls get ids where they have none, and results the id of the call that they answer."""
    found: list[Json] = []
    pending: list[tuple[str, str]] = []
    made = 0
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        said: Json = {"role": message.role, "content": _content(message.content or "", message.images or (), where)}
        if message.tool_calls:
            calls = [(call.id or f"call_{made + number}", call) for number, call in enumerate(message.tool_calls)]
            made += len(calls)
            pending = [(call_id, call.function.name) for call_id, call in calls]
            said["tool_calls"] = [
                {
                    "id": call_id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": json.dumps(call.function.arguments)},
                }
                for call_id, call in calls
            ]
            said["content"] = said["content"] or None
        if message.role == "tool":
            said |= _answered(message, pending, where)
        found.append(said)
    return found


def _answered(message: OllamaMessage, pending: list[tuple[str, str]], where: str) -> Json:
    """Which call this result is of: the one it names by id, the first of its tool, or the first without a result."""
    named = [call for call in pending if message.tool_call_id == call[0]]
    of_tool = [call for call in pending if message.tool_name == call[1]]
    found = named or of_tool or ([] if message.tool_name else pending)
    if not found:
        raise refused(where, "a tool's result without a call before it that it could be of")
    call = found[0]
    pending.remove(call)
    return {"tool_call_id": call[0]}


def _content(text: str, images: Sequence[str], where: str) -> str | list[Json]:
    if not images:
        return text
    parts: list[Json] = [{"type": "text", "text": text}] if text else []
    for index, image in enumerate(images):
        kind = next((kind for start, kind in _IMAGES.items() if image.startswith(start)), None)
        if kind is None:
            raise refused(
                f"{where}[{index}]" if where == "images" else f"{where}.images[{index}]", "must be base64 of an image"
            )
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{image}"}})
    return parts
