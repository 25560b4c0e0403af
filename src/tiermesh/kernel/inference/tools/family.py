"""How the families of models write a call, and by what a chat template shows which family its model is of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tiermesh.kernel.inference.tools.definitions import Tool, Toolbox


@dataclass(frozen=True, slots=True)
class Family:
    """One way of writing calls: between two tags, or, where there are no tags, from the answer's first character on."""

    name: str
    start_tag: str
    end_tag: str
    before: str
    """Between the start tag and the first call."""
    between: str
    """Between two calls."""
    after: str
    """Between the last call and the end tag."""
    arguments_key: str
    native: bool = True
    """Whether the model's template takes tools and calls itself; else `conversation` writes them into the texts."""

    def head(self, tool: Tool) -> str:
        """What stands before a call's arguments; a closing brace stands after them."""
        return f'{{"name": "{tool.name}", "{self.arguments_key}": '


HERMES = Family(
    "hermes", "<tool_call>", "</tool_call>", "\n", "\n</tool_call>\n<tool_call>\n", "\n", arguments_key="arguments"
)
"""Hermes 2 Pro and later, Qwen 2.5 and 3, SmolLM3: one JSON object between each pair of tags."""
LLAMA3 = Family("llama3", "", "", "", "; ", "", arguments_key="parameters")
"""Llama 3.1 and later: the whole answer is a JSON object, or several with semicolons between them."""
SMOLLM2 = Family("smollm2", "<tool_call>", "</tool_call>", "[", ", ", "]", arguments_key="arguments", native=False)
"""SmolLM2: a JSON list between tags. Its template knows no tools; a system text tells the model of them."""


def recognise(template: str, special_tokens: Sequence[str]) -> Family | None:
    """The family of a model with this chat template; None when its way of calling tools isn't known here.

    A tag that is a special token would never be seen in the text, so such a model counts as unknown.
    """
    if "<tool_call>" in special_tokens:
        return None
    if "tools" not in template:
        return SMOLLM2
    if "<tool_call>" in template and "<function=" not in template and "<arg_key>" not in template:
        return HERMES
    if '"parameters"' in template and ("<|python_tag|>" in template or "<|start_header_id|>" in template):
        return LLAMA3
    return None


def instructions(toolbox: Toolbox) -> str:
    """What a model whose template knows no tools is told of them: briefly, for the smallest ones forget the rest."""
    definitions = json.dumps([tool.definition["function"] for tool in toolbox.tools], ensure_ascii=False)
    return (
        "You are an expert in composing functions. Based on the question, make one or more function calls to achieve "
        "the purpose. Answer in words only when no function can help.\n"
        f"<tools>{definitions}</tools>\n\n"
        "Output format:\n"
        '<tool_call>[{"name": "func_name", "arguments": {"argument": "value"}}]</tool_call>'
    )
