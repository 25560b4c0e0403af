"""A conversation with calls and their results, as a model's template takes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tiermesh.kernel.inference.tools.definitions import Toolbox
from tiermesh.kernel.inference.tools.family import Family, instructions

Message = Mapping[str, Any]


def written_out(messages: Sequence[Message], toolbox: Toolbox, family: Family) -> list[Message]:
    """For a template that knows no tools: definitions, calls and results become text."""
    texts = [_as_text(message, family) for message in messages]
    merged: list[Message] = []
    for before, message, text in zip([None, *messages], messages, texts, strict=False):
        if merged and before is not None and before["role"] == message["role"] == "tool":
            # Results of parallel calls are one turn: templates may refuse two of the same role in a row.
            merged[-1] = {**merged[-1], "content": f"{merged[-1]['content']}\n{text['content']}"}
        else:
            merged.append(text)
    return _with_instructions(merged, instructions(toolbox)) if toolbox.tools else merged


def _as_text(message: Message, family: Family) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if "tool_calls" not in message:
        return message
    calls = [
        {"name": call["function"]["name"], family.arguments_key: call["function"]["arguments"]}
        for call in message["tool_calls"]
    ]
    written = family.between.join(json.dumps(call, ensure_ascii=False) for call in calls)
    tagged = f"{family.start_tag}{family.before}{written}{family.after}{family.end_tag}"
    return {"role": "assistant", "content": f"{message['content']}{tagged}"}


def _with_instructions(messages: Sequence[Message], text: str) -> list[Message]:
    if messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
