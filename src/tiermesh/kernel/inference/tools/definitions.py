"""What a request says of tools: which there are, and whether they may, must or must not be called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict

from tiermesh.errors import InvalidInput
from tiermesh.protocol.openai import ChatCompletionRequest
from tiermesh.protocol.validation import Wire, validated

MAX_TOOLS = 128
"""OpenAI's bound; their definitions alone fill the context of any model that runs here."""
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""OpenAI's rule, and the dots that tool servers put between their name and the tool's."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One function. `definition` is what its author wrote, for the model to read."""

    name: str
    parameters: Mapping[str, Any]
    strict: bool
    definition: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools that the model is told of, and those of them that it may call. Both are empty with `tool_choice` none.

    `required`: it must call one. `parallel`: it may call more than one.
    """

    tools: tuple[Tool, ...] = ()
    callable: tuple[Tool, ...] = ()
    required: bool = False
    parallel: bool = True

    @property
    def strict(self) -> bool:
        """Whether what the model may call was asked to be called exactly as defined."""
        return any(tool.strict for tool in self.callable)


class _Function(Wire):
    model_config = ConfigDict(extra="allow")

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Definition(Wire):
    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    function: _Function


class _Definitions(Wire):
    tools: list[_Definition]


class _Name(Wire):
    name: str


class _Named(Wire):
    type: Literal["function"]
    function: _Name


class _Choice(Wire):
    tool_choice: _Named


def toolbox(request: ChatCompletionRequest) -> Toolbox:
    """Raises `InvalidInput` that names the field."""
    tools = _tools(request.tools or [])
    choice = request.tool_choice
    parallel = request.parallel_tool_calls is not False
    if not tools and choice not in (None, "none", "auto"):
        raise InvalidInput("tool_choice: there are no tools to choose from", param="tool_choice")
    if not tools or choice == "none":
        return Toolbox()
    if isinstance(choice, dict):
        return Toolbox(tools, (_named(tools, choice),), required=True, parallel=False)
    return Toolbox(tools, tools, required=choice == "required", parallel=parallel)


def _tools(raw: Sequence[Mapping[str, Any]]) -> tuple[Tool, ...]:
    if len(raw) > MAX_TOOLS:
        raise InvalidInput(f"tools: at most {MAX_TOOLS}", param="tools")
    definitions = validated(_Definitions, {"tools": raw}).tools
    tools = tuple(
        _tool(f"tools[{index}]", definition.function, raw[index]) for index, definition in enumerate(definitions)
    )
    names = [tool.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            where = f"tools[{index}].function.name"
            raise InvalidInput(f"{where}: {name} is defined twice", param=where)
    return tools


def _tool(where: str, function: _Function, definition: Mapping[str, Any]) -> Tool:
    if NAME.fullmatch(function.name) is None:
        param = f"{where}.function.name"
        raise InvalidInput(f"{param}: 1 to 64 letters, digits, dots, dashes or underscores", param=param)
    parameters = {"type": "object", **(function.parameters or {"properties": {}})}
    if parameters["type"] != "object":
        param = f"{where}.function.parameters.type"
        raise InvalidInput(f"{param}: must be object", param=param)
    return Tool(function.name, parameters, bool(function.strict), definition)


def _named(tools: Sequence[Tool], choice: Mapping[str, Any]) -> Tool:
    wanted = validated(_Choice, {"tool_choice": choice}).tool_choice.function.name
    for tool in tools:
        if tool.name == wanted:
            return tool
    where = "tool_choice.function.name"
    raise InvalidInput(f"{where}: there is no tool named {wanted}", param=where)
