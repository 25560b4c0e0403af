"""From a request of OpenAI's Responses API to a chat completion. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tiermesh.daemon.api.refusing import refuse_unknown, refused
from tiermesh.protocol.responses import ResponsesRequest, ResponseText, ResponseTool

Json = dict[str, Any]

HINTS = frozenset(
    {
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "safety_identifier",
        "service_tier",
        "stream_options",
        "user",
        "max_tool_calls",
    }
)
"""They change nothing about an answer; `max_tool_calls` counts tools that OpenAI runs itself."""

LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = frozenset({LOGPROBS, "reasoning.encrypted_content"})
"""Nothing encrypted ever comes, and a client that can take it can do without."""

_ROLES: Mapping[str, str] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


def chat_body(asked: ResponsesRequest) -> Json:
    """The same request as a chat completion's body. Raises `InvalidInput` that names the field."""
    _refuse_unsupported(asked)
    system = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    plain: Json = {
        "max_tokens": asked.max_output_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "reasoning_effort": asked.reasoning.effort if asked.reasoning else None,
        "logprobs": True if wants_logprobs(asked) else None,
        "top_logprobs": asked.top_logprobs if wants_logprobs(asked) else None,
    }
    body: Json = {"messages": [*system, *_conversation(asked.input)]}
    body |= {name: value for name, value in plain.items() if value is not None}
    return body | _tools(asked) | _response_format(asked.text)


def wants_logprobs(asked: ResponsesRequest) -> bool:
    """Are logprobs to be told?"""
    return bool(asked.top_logprobs) or LOGPROBS in (asked.include or ())


def _refuse_unsupported(asked: ResponsesRequest) -> None:
    refuse_unknown(asked, HINTS)
    if asked.truncation == "auto":
        raise refused("truncation", "auto is not supported: nothing is left out of a conversation unasked")
    for name in asked.include or ():
        if name not in _INCLUDABLE:
            raise refused("include", f"{name!r} is not supported by this mesh")


def _conversation(given: str | Sequence[Json]) -> list[Json]:
    """One message an item; calls that follow one another, and what was said before them, are one turn."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    found: list[Json] = []
    for message in (message for index, item in enumerate(given) for message in _messages(item, f"input[{index}]")):
        if message.get("tool_calls") and found and found[-1]["role"] == "assistant":
            found[-1]["tool_calls"] = [*found[-1].get("tool_calls", ()), *message["tool_calls"]]
        else:
            found.append(message)
    return found


def _messages(item: Json, where: str) -> Iterator[Json]:
    match item:
        case {"type": "function_call", "call_id": str(call_id), "name": str(name), "arguments": str(arguments)}:
            call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            yield {"role": "assistant", "content": None, "tool_calls": [call]}
        case {"type": "function_call_output", "call_id": str(call_id), "output": output}:
            yield {"role": "tool", "tool_call_id": call_id, "content": _text(output, f"{where}.output")}
        case {"type": "reasoning"}:
            return  # models are not shown their earlier thoughts
        case {"role": str(role), "content": content} if item.get("type") in (None, "message"):
            if role not in _ROLES:
                raise refused(f"{where}.role", "must be user, assistant, system or developer")
            yield {"role": _ROLES[role], "content": _content(content, f"{where}.content")}
        case _:
            raise refused(
                where, "must be a message, a function_call, a function_call_output or reasoning, with their fields"
            )


def _content(content: object, where: str) -> str | list[Json]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise refused(where, "must be a text or a list of parts")
    parts = [_part(part, f"{where}[{index}]") for index, part in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: object, where: str) -> Json:
    match part:
        case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "input_image", "image_url": str(url), **more}:
            detail = {"detail": more["detail"]} if isinstance(more.get("detail"), str) else {}
            return {"type": "image_url", "image_url": {"url": url, **detail}}
    raise refused(where, "must be an input_text, an output_text or an input_image with its image_url")


def _text(output: object, where: str) -> str:
    content = _content(output, where)
    if not isinstance(content, str):
        raise refused(where, "only text is supported here")
    return content


def _tools(asked: ResponsesRequest) -> Json:
    if not asked.tools:
        return {}
    body: Json = {"tools": [_tool(tool, f"tools[{index}]") for index, tool in enumerate(asked.tools)]}
    if asked.parallel_tool_calls is not None:
        body["parallel_tool_calls"] = asked.parallel_tool_calls
    match asked.tool_choice:
        case None:
            return body
        case str(choice):
            return body | {"tool_choice": choice}
        case {"type": "function", "name": str(name)}:
            return body | {"tool_choice": {"type": "function", "function": {"name": name}}}
    raise refused("tool_choice", 'must be "none", "auto", "required" or {"type": "function", "name": ...}')


def _tool(tool: ResponseTool, where: str) -> Json:
    if tool.type != "function":
        raise refused(
            f"{where}.type", f"{tool.type!r} runs on OpenAI's servers; a mesh has the caller's own functions only"
        )
    if not tool.name:
        raise refused(f"{where}.name", "is required")
    function: Json = {"name": tool.name, "parameters": tool.parameters or {"type": "object", "properties": {}}}
    more = {"description": tool.description, "strict": tool.strict}
    return {
        "type": "function",
        "function": function | {name: value for name, value in more.items() if value is not None},
    }


def _response_format(text: ResponseText | None) -> Json:
    match (text.format if text is not None else None) or {"type": "text"}:
        case {"type": "text"}:
            return {}
        case {"type": "json_object"}:
            return {"response_format": {"type": "json_object"}}
        case {"type": "json_schema", "schema": dict(schema), **more}:
            named = {"name": more.get("name") or "answer", "schema": schema}
            named |= {key: more[key] for key in ("strict", "description") if more.get(key) is not None}
            return {"response_format": {"type": "json_schema", "json_schema": named}}
    raise refused("text.format", "must be text, json_object or a json_schema with a schema")
