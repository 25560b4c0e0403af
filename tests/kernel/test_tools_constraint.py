"""What the grammars let through, token by token, with a small tokenizer."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tests import tiny_model

from tiermesh.errors import EngineFailed, InvalidInput
from tiermesh.kernel.inference.grammar import MAX_COMPILED, Grammars
from tiermesh.kernel.inference.tools.constraint import constraint
from tiermesh.kernel.inference.tools.definitions import Toolbox, toolbox
from tiermesh.kernel.inference.tools.family import HERMES, LLAMA3, SMOLLM2, Family
from tiermesh.protocol.openai import ChatCompletionRequest

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ANSWER = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_model._tokenizer()


@pytest.fixture(scope="module")
def grammars(tokenizer: Any) -> Grammars:
    return Grammars(tokenizer, {tiny_model.END})


def tools(*, strict: bool = False, **parameters: object) -> Toolbox:
    function = {"name": "get_weather", "parameters": SCHEMA, "strict": strict}
    request = {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": function}]}
    return toolbox(ChatCompletionRequest.model_validate({**request, **parameters}))


def allows(grammars: Grammars, tokenizer: Any, lark: str | None, text: str) -> bool:
    """Whether the text may come and may then end; the masks and the matcher must agree."""
    assert lark is not None
    grammar = grammars.begin(lark, "tools")
    for token in [*tokenizer.encode(text), tiny_model.END]:
        logits_V = torch.zeros(tiny_model.VOCABULARY)
        grammar.mask(logits_V)
        if logits_V[token] != 0:
            with pytest.raises(EngineFailed):
                grammar.accept(token)
            return False
        grammar.accept(token)
    return True


CALL = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    "llama3": '{"name": "get_weather", "parameters": {"city": "Paris"}}',
    "smollm2": '<tool_call>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</tool_call>',
}
TWO = {
    "hermes": f"{CALL['hermes']}\n{CALL['hermes']}",
    "llama3": f"{CALL['llama3']}; {CALL['llama3']}",
    "smollm2": CALL["smollm2"].replace(
        "]", ", " + CALL["smollm2"].removeprefix("<tool_call>[").partition("]")[0] + "]"
    ),
}


@pytest.mark.parametrize("family", [HERMES, LLAMA3, SMOLLM2])
def test_required_means_calls_and_nothing_else(grammars: Grammars, tokenizer: Any, family: Family) -> None:
    lark = constraint(tools(tool_choice="required"), family, None)
    call = CALL[family.name]
    assert allows(grammars, tokenizer, lark, call)
    assert allows(grammars, tokenizer, lark, TWO[family.name])
    assert not allows(grammars, tokenizer, lark, "It is sunny.")
    assert not allows(grammars, tokenizer, lark, call.replace("get_weather", "fly"))
    assert not allows(grammars, tokenizer, lark, call.replace("city", "town"))
    assert not allows(grammars, tokenizer, lark, call.replace('"Paris"', "5"))
    assert not allows(grammars, tokenizer, lark, call.replace('"Paris"', '"Paris", "more": 1'))


@pytest.mark.parametrize("family", [HERMES, LLAMA3, SMOLLM2])
def test_without_parallel_calls_there_is_one(grammars: Grammars, tokenizer: Any, family: Family) -> None:
    lark = constraint(tools(tool_choice="required", parallel_tool_calls=False), family, None)
    assert allows(grammars, tokenizer, lark, CALL[family.name])
    assert not allows(grammars, tokenizer, lark, TWO[family.name])


@pytest.mark.parametrize("family", [HERMES, LLAMA3, SMOLLM2])
def test_strict_tools_may_be_called_as_defined_or_not_at_all(
    grammars: Grammars, tokenizer: Any, family: Family
) -> None:
    lark = constraint(tools(strict=True), family, None)
    assert allows(grammars, tokenizer, lark, "It is sunny, {as ever}.")
    assert allows(grammars, tokenizer, lark, CALL[family.name])
    assert allows(grammars, tokenizer, lark, TWO[family.name])
    assert not allows(grammars, tokenizer, lark, CALL[family.name].replace("city", "town"))


def test_tools_that_are_not_strict_leave_the_model_free() -> None:
    assert constraint(tools(), HERMES, None) is None
    assert constraint(Toolbox(), None, None) is None


def test_an_answer_is_json_of_its_schema_or_a_call(grammars: Grammars, tokenizer: Any) -> None:
    alone = constraint(Toolbox(), None, ANSWER)
    assert allows(grammars, tokenizer, alone, '{\n  "a": 1\n}')
    assert not allows(grammars, tokenizer, alone, CALL["hermes"])
    either = constraint(tools(), HERMES, ANSWER)
    assert allows(grammars, tokenizer, either, '{"a":-5}')
    assert allows(grammars, tokenizer, either, CALL["hermes"])
    for wrong in ("text", '{"a": "x"}', '{"b": 1}', '{"a": 1} ', '{"a": 1,\n' + " " * 40 + '"b": 1}'):
        assert not allows(grammars, tokenizer, either, wrong)


def test_any_object(grammars: Grammars, tokenizer: Any) -> None:
    lark = constraint(Toolbox(), None, {"type": "object"})
    assert allows(grammars, tokenizer, lark, json.dumps({"a": [1, {"b": None}], "größe": "🦊"}, ensure_ascii=False))
    assert not allows(grammars, tokenizer, lark, "[1]")


def test_a_schema_that_can_not_be_enforced_is_refused_in_one_line(grammars: Grammars) -> None:
    lark = constraint(Toolbox(), None, {"$ref": "http://localhost/elsewhere"})
    assert lark is not None
    with pytest.raises(InvalidInput, match=r"^response_format: can't be enforced: [^\n]*$") as refused:
        grammars.begin(lark, "response_format")
    assert refused.value.param == "response_format"


@pytest.mark.parametrize("depth", [200, 900])
def test_a_schema_that_is_nested_too_deeply_is_refused(grammars: Grammars, depth: int) -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    with pytest.raises((InvalidInput, RecursionError)):
        grammars.begin(constraint(Toolbox(), None, schema) or "", "response_format")


def test_a_schema_that_would_take_long_to_compile_is_refused(grammars: Grammars) -> None:
    lark = constraint(Toolbox(), None, {"type": "object", "properties": {f"key{i}": {} for i in range(5000)}})
    assert lark is not None
    with pytest.raises(InvalidInput, match="response_format: more than"):
        grammars.begin(lark, "response_format")


def test_what_can_not_be_enforced_in_a_hint_is_left_to_the_model(grammars: Grammars, tokenizer: Any) -> None:
    odd = {"type": "object", "properties": {"city": {"type": "string", "not": {"const": "x"}}}}
    parameters: dict[str, Any] = {
        "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": odd}}],
        "tool_choice": "required",
    }
    lark = constraint(tools(**parameters), HERMES, None)
    assert allows(grammars, tokenizer, lark, CALL["hermes"])


def test_grammars_of_two_answers_do_not_share_where_they_stand(grammars: Grammars, tokenizer: Any) -> None:
    lark = constraint(Toolbox(), None, ANSWER)
    assert lark is not None
    first = grammars.begin(lark, "x")
    for token in tokenizer.encode('{"a":'):
        first.accept(token)
    assert allows(grammars, tokenizer, lark, '{"a":1}')


def test_as_many_grammars_are_kept_as_there_is_room_for(tokenizer: Any) -> None:
    kept = Grammars(tokenizer, {tiny_model.END})
    for index in range(MAX_COMPILED + 5):
        kept.begin(f'%llguidance {{}}\nstart: "{index}"\n', "x")
    assert len(kept._compiled) == MAX_COMPILED


def test_tokens_as_bytes(grammars: Grammars, tokenizer: Any) -> None:
    text = "größe 🦊"
    assert b"".join(grammars.bytes_of(token) for token in tokenizer.encode(text)) == text.encode()
    assert grammars.bytes_of(tiny_model.END) == tiny_model.SPECIAL[2].encode()
