"""What an answer must look like, as a grammar: calls of tools, JSON of a schema, or one of the two.

Written in llguidance's dialect of Lark.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tiermesh.kernel.inference.tools.definitions import Tool, Toolbox
from tiermesh.kernel.inference.tools.family import Family

Schema = Mapping[str, Any]

WHITE_SPACE = r"( |\n {0,24})?"
"""Between JSON's tokens. With no bound a small model may indent until its answer is full."""
ANY_TEXT = r"/(.|\n)*/"
NO_BRACE_FIRST = r"/[^{\s](.|\n)*/"
"""Where there is no tag a brace begins a call."""


def constraint(toolbox: Toolbox, family: Family | None, answer: Schema | None) -> str | None:
    """The grammar, or None where anything may come. `answer` is the schema of an answer that is no call."""
    assert family is not None or not toolbox.tools, "tools need a family"
    if family is None or not toolbox.callable:
        return None if answer is None else _lark("start: answer", _json("answer", answer, strict=True))
    if toolbox.required:
        return _lark("start: calls", *_calls(toolbox, family))
    if answer is not None:
        return _lark("start: calls | answer", *_calls(toolbox, family), _json("answer", answer, strict=True))
    if not toolbox.strict:
        return None
    return _lark(*_calls_or_text(toolbox, family), *_calls(toolbox, family))


def _lark(*rules: str) -> str:
    return "\n".join(("%llguidance {}", *rules)) + "\n"


def _calls_or_text(toolbox: Toolbox, family: Family) -> Iterable[str]:
    if not family.start_tag:
        return ("start: calls | TEXT?", f"TEXT: {NO_BRACE_FIRST}")
    closed = _quoted(family.after + family.end_tag)
    return (
        "start: tagged* TEXT",
        f"TEXT: {ANY_TEXT}",
        f"tag[lazy]: TEXT {_quoted(family.start_tag)}",
        f"tagged: tag {_sequence(_quoted(family.before), 'call', _more(toolbox, family), closed)}",
    )


def _calls(toolbox: Toolbox, family: Family) -> Iterable[str]:
    """Rules for `calls`, as many as may be made, and for `call`."""
    opened, closed = _quoted(family.start_tag + family.before), _quoted(family.after + family.end_tag)
    yield f"calls: {_sequence(opened, 'call', _more(toolbox, family), closed)}"
    yield "call: " + " | ".join(f"call_{index}" for index in range(len(toolbox.callable)))
    for index, tool in enumerate(toolbox.callable):
        yield f'call_{index}: {_quoted(family.head(tool))} arguments_{index} "}}"'
        yield _json(f"arguments_{index}", _arguments(tool), strict=tool.strict)


def _more(toolbox: Toolbox, family: Family) -> str:
    return f"({_quoted(family.between)} call)*" if toolbox.parallel else ""


def _arguments(tool: Tool) -> Schema:
    """A tool that declares its arguments gets no others: left free, a small model invents some."""
    closed = {"additionalProperties": False} if "properties" in tool.parameters else {}
    return {**closed, **tool.parameters}


def _json(rule: str, schema: Schema, *, strict: bool) -> str:
    """What can't be enforced is an error where the schema is a promise, and left to the model where it is a hint."""
    options = {"whitespace_pattern": WHITE_SPACE, "lenient": not strict}
    return f"{rule}: %json {json.dumps({**schema, 'x-guidance': options}, ensure_ascii=False)}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _sequence(*parts: str) -> str:
    return " ".join(part for part in parts if part)
