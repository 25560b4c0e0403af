"""Between Anthropic's messages and a chat completion. Pure."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tiermesh.daemon.api.refusing import refuse_unknown, refused
from tiermesh.daemon.api.said import CallPiece, Piece, Tokens, call_arguments
from tiermesh.errors import EngineFailed, TiermeshError
from tiermesh.protocol.anthropic import (
    AnthropicError,
    AnthropicErrorDetail,
    AnthropicMessage,
    AnthropicTool,
    AnthropicToolChoice,
    MessagesRequest,
    OutputConfig,
)

PATHS = ("/v1/messages", "/v1/messages/count_tokens")
"""Where errors are told in this dialect: clients ask for the second too, and find that it isn't there."""

HINTS = frozenset({"metadata", "service_tier", "cache_control", "inference_geo", "speed", "diagnostics"})
"""They change nothing about an answer."""

_ERROR_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_STOP_REASONS: Mapping[str, str] = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_CHOICES: Mapping[str, str] = {"auto": "auto", "any": "required", "none": "none"}

Json = dict[str, Any]


def error_body(error: TiermeshError) -> Json:
    """An error as Anthropic's clients read it."""
    kind = _ERROR_TYPES.get(error.http_status)
    kind = kind or ("api_error" if error.http_status >= 500 else "invalid_request_error")
    return AnthropicError(error=AnthropicErrorDetail(type=kind, message=str(error))).model_dump()


def chat_body(asked: MessagesRequest) -> Json:
    """The same request as a chat completion's body. Raises `InvalidInput` that names the field."""
    refuse_unknown(asked, HINTS)
    body: Json = {"messages": [*_system(asked.system), *_conversation(asked.messages)], "max_tokens": asked.max_tokens}
    plain = {"temperature": asked.temperature, "top_p": asked.top_p, "top_k": asked.top_k, "stop": asked.stop_sequences}
    body |= {name: value for name, value in plain.items() if value not in (None, [])}
    if asked.tools:
        body["tools"] = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(asked.tools)]
        body |= _tool_choice(asked.tool_choice)
    return body | _response_format(asked.output_config)


class MessageTelling:
    """An answer as one message: its blocks, one open at a time, each closed when the next begins."""

    media_type = "text/event-stream"

    def __init__(self, asked: MessagesRequest, model: str) -> None:
        self._id = f"msg_{secrets.token_hex(12)}"
        self._model = model
        self._shows_thoughts = asked.thinking is not None and asked.thinking.type != "disabled"
        self._blocks: list[Json] = []
        self._open = False
        self._call: int | None = None
        self._arguments = ""
        self._reason: str | None = None
        self._stop: str | None = None
        self._tokens = Tokens()
        self._told: list[bytes] = []

    def begin(self) -> bytes:
        """How many tokens the prompt has is known at the end only, and told there."""
        usage = {"input_tokens": 0, "output_tokens": 0}
        self._tell("message_start", message=self._message() | {"content": [], "stop_reason": None, "usage": usage})
        return self._flush()

    def take(self, piece: Piece) -> bytes:
        self._tokens = piece.tokens or self._tokens
        self._reason = piece.finish_reason or self._reason
        self._stop = piece.stop or self._stop
        if piece.thought and self._shows_thoughts:
            self._say("thinking", piece.thought, {"signature": ""})
        if piece.text:
            self._say("text", piece.text, {})
        for call in piece.calls:
            self._take_call(call)
        return self._flush()

    def end(self) -> bytes:
        self._close()
        reason = {"stop_reason": self._stop_reason(), "stop_sequence": self._stop}
        self._tell("message_delta", delta=reason, usage=self._usage())
        self._tell("message_stop")
        return self._flush()

    def failed(self, error: TiermeshError) -> bytes:
        return _event("error", error_body(error))

    def body(self) -> Json:
        return self._message()

    def _message(self) -> Json:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": self._blocks,
            "stop_reason": self._stop_reason(),
            "stop_sequence": self._stop,
            "usage": self._usage(),
        }

    def _usage(self) -> Json:
        tokens = self._tokens
        return {
            "input_tokens": max(0, tokens.prompt - tokens.cached),
            "output_tokens": tokens.completion,
            "cache_read_input_tokens": tokens.cached,
        }

    def _stop_reason(self) -> str:
        if self._stop is not None:
            return "stop_sequence"
        reason = _STOP_REASONS.get(self._reason or "", "end_turn")
        # Some servers end a call with a plain "stop".
        return "tool_use" if reason == "end_turn" and self._call is not None else reason

    def _say(self, kind: str, text: str, more: Json) -> None:
        if not self._open or self._blocks[-1]["type"] != kind:
            self._start({"type": kind, kind: "", **more})
        self._blocks[-1][kind] += text
        self._delta({"type": f"{kind}_delta", kind: text})

    def _take_call(self, piece: CallPiece) -> None:
        if self._call is None or piece.index > self._call:
            if not piece.name:
                raise EngineFailed("a tool call without a name")
            call_id = piece.id or f"toolu_{secrets.token_hex(12)}"
            self._start({"type": "tool_use", "id": call_id, "name": piece.name, "input": {}})
            self._call, self._arguments = piece.index, ""
        elif piece.index < self._call or self._blocks[-1]["type"] != "tool_use":
            raise EngineFailed("a tool call that goes on after it was over")
        if piece.arguments:
            self._arguments += piece.arguments
            self._delta({"type": "input_json_delta", "partial_json": piece.arguments})

    def _start(self, block: Json) -> None:
        self._close()
        self._blocks.append(block)
        self._open = True
        self._tell("content_block_start", index=len(self._blocks) - 1, content_block=block)

    def _delta(self, delta: Json) -> None:
        self._tell("content_block_delta", index=len(self._blocks) - 1, delta=delta)

    def _close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._tell("content_block_stop", index=len(self._blocks) - 1)
        if self._blocks[-1]["type"] != "tool_use":
            return
        try:
            self._blocks[-1]["input"] = call_arguments(self._arguments)
        except EngineFailed:
            if self._reason != "length":
                raise
            del self._blocks[-1]  # a call cut off at max_tokens is none; that it was cut the reason says

    def _tell(self, kind: str, **data: object) -> None:
        self._told.append(_event(kind, {"type": kind, **data}))

    def _flush(self) -> bytes:
        told, self._told = b"".join(self._told), []
        return told


def _event(kind: str, data: Mapping[str, object]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def _system(system: str | Sequence[Json] | None) -> list[Json]:
    text = _texts(system, "system") if system else ""
    return [{"role": "system", "content": text}] if text else []


def _conversation(messages: Sequence[AnthropicMessage]) -> Iterator[Json]:
    for index, message in enumerate(messages):
        where = f"messages[{index}].content"
        match message.role:
            case "user":
                yield from _user(message.content, where)
            case "assistant":
                yield _assistant(message.content, where)
            case "system":
                yield {"role": "system", "content": _texts(message.content, where)}


def _user(content: str | Sequence[Json], where: str) -> Iterator[Json]:
    """Results come first: in a chat they answer the assistant's message, and the user speaks after them."""
    if isinstance(content, str):
        yield {"role": "user", "content": content}
        return
    parts: list[Json] = []
    for index, block in enumerate(content):
        here = f"{where}[{index}]"
        if block["type"] == "tool_result":
            yield _result(block, here)
        else:
            parts.append(_part(block, here))
    if parts:
        plain = all(part["type"] == "text" for part in parts)
        yield {"role": "user", "content": "\n\n".join(part["text"] for part in parts) if plain else parts}


def _assistant(content: str | Sequence[Json], where: str) -> Json:
    """Thoughts stay behind: models are not shown their earlier ones."""
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts, calls = [], []
    for index, block in enumerate(content):
        here = f"{where}[{index}]"
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "tool_use", "id": str(call_id), "name": str(name), "input": dict(arguments)}:
                function = {"name": name, "arguments": json.dumps(arguments)}
                calls.append({"id": call_id, "type": "function", "function": function})
            case {"type": "thinking" | "redacted_thinking"}:
                continue
            case _:
                raise refused(
                    here, "an assistant's block must be a text, a tool_use with id, name and input, or thinking"
                )
    said: Json = {"role": "assistant", "content": "".join(texts)}
    return said | ({"tool_calls": calls, "content": said["content"] or None} if calls else {})


def _result(block: Json, where: str) -> Json:
    call_id = block.get("tool_use_id")
    if not isinstance(call_id, str):
        raise refused(f"{where}.tool_use_id", "is required")
    text = _texts(block.get("content") or "", f"{where}.content")
    failed = "Error: " if block.get("is_error") else ""
    return {"role": "tool", "tool_call_id": call_id, "content": failed + text}


def _part(block: Json, where: str) -> Json:
    match block:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "image", "source": {"type": "base64", "media_type": str(media), "data": str(data)}}:
            return {"type": "image_url", "image_url": {"url": f"data:{media};base64,{data}"}}
        case {"type": "image", "source": {"type": "url", "url": str(url)}}:
            return {"type": "image_url", "image_url": {"url": url}}
    raise refused(
        where, f"a block of type {block['type']!r} like this one is not supported; there are text, image, tool_result"
    )


def _texts(content: str | Sequence[Json] | Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise refused(where, "must be a text or a list of text blocks")
    texts = []
    for index, block in enumerate(content):
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case _:
                raise refused(f"{where}[{index}]", "only text blocks are supported here")
    return "\n\n".join(texts)


def _tool(tool: AnthropicTool, where: str) -> Json:
    if tool.type not in (None, "custom"):
        raise refused(
            f"{where}.type", f"{tool.type!r} runs on Anthropic's servers; a mesh has the caller's own tools only"
        )
    function: Json = {"name": tool.name, "parameters": tool.input_schema or {"type": "object", "properties": {}}}
    more = {"description": tool.description, "strict": tool.strict}
    return {
        "type": "function",
        "function": function | {name: value for name, value in more.items() if value is not None},
    }


def _tool_choice(choice: AnthropicToolChoice | None) -> Json:
    if choice is None:
        return {}
    alone = {"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {}
    if choice.type != "tool":
        return {"tool_choice": _CHOICES[choice.type], **alone}
    if not choice.name:
        raise refused("tool_choice.name", "is required with the type tool")
    return {"tool_choice": {"type": "function", "function": {"name": choice.name}}, **alone}


def _response_format(config: OutputConfig | None) -> Json:
    match config.format if config is not None else None:
        case None:
            return {}
        case {"type": "json_schema", "schema": dict(schema)}:
            named = {"name": "answer", "schema": schema, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": named}}
    raise refused("output_config.format", "must be a json_schema with a schema")
