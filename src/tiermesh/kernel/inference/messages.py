"""A request's messages, as chat templates take them: texts, and calls whose arguments are objects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ConfigDict

from tiermesh.errors import InvalidInput
from tiermesh.protocol.openai import ChatMessage
from tiermesh.protocol.validation import Wire, validated

ROLES = ("system", "developer", "user", "assistant", "tool")

Message = Mapping[str, Any]


class _Called(Wire):
    name: str
    arguments: str | dict[str, Any]


class _Call(Wire):
    model_config = ConfigDict(extra="allow")

    id: str = ""
    function: _Called


class _Calls(Wire):
    tool_calls: list[_Call]


def understood(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Raises `InvalidInput` that names the field. A result gets the name of the tool that its call named."""
    names: dict[str, str] = {}
    found = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        _refuse_unsupported(where, message)
        if message.role == "tool":
            found.append(_result(where, message, names))
            continue
        role = "system" if message.role == "developer" else message.role
        if message.tool_calls is None:
            found.append({"role": role, "content": _text(f"{where}.content", message.content)})
            continue
        calls = _calls(where, message.tool_calls)
        names |= {call["id"]: call["function"]["name"] for call in calls}
        content = "" if message.content is None else _text(f"{where}.content", message.content)
        found.append({"role": role, "content": content, "tool_calls": calls})
    return tuple(found)


def _refuse_unsupported(where: str, message: ChatMessage) -> None:
    if message.role not in ROLES:
        raise _refused(f"{where}.role", f"{message.role} is not supported by the built-in kernel")
    extra = dict(message.model_extra or {})
    if message.role != "tool":
        extra |= {"name": message.name, "tool_call_id": message.tool_call_id}
    if message.role != "assistant":
        extra |= {"tool_calls": message.tool_calls}
    for name, value in extra.items():
        if value not in (None, [], {}, ""):
            raise _refused(f"{where}.{name}", "not supported by the built-in kernel")


def _result(where: str, message: ChatMessage, names: Mapping[str, str]) -> Message:
    result = {"role": "tool", "content": _text(f"{where}.content", message.content)}
    if message.tool_call_id:
        result["tool_call_id"] = message.tool_call_id
    if name := message.name or names.get(message.tool_call_id or ""):
        result["name"] = name
    return result


def _calls(where: str, raw: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    try:
        calls = validated(_Calls, {"tool_calls": raw}).tool_calls
    except InvalidInput as error:
        raise InvalidInput(f"{where}.{error}", param=f"{where}.{error.param}") from None
    return [
        {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
        for index, call in enumerate(calls)
        for arguments in [_arguments(f"{where}.tool_calls[{index}].function.arguments", call.function.arguments)]
    ]


def _arguments(where: str, written: str | dict[str, Any]) -> dict[str, Any]:
    """An object, because templates write it as JSON themselves."""
    if isinstance(written, dict):
        return written
    try:
        arguments = json.loads(written or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise _refused(where, "must be a JSON object, written as a string")
    return arguments


def _text(where: str, content: object) -> str:
    """A text, or parts that are all text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _refused(where, "must be a text")
    texts = []
    for index, part in enumerate(content):
        if part["type"] != "text" or not isinstance(part.get("text"), str):
            raise _refused(f"{where}[{index}]", "only text parts are supported")
        texts.append(part["text"])
    return "".join(texts)


def _refused(where: str, why: str) -> InvalidInput:
    return InvalidInput(f"{where}: {why}", param=where)
