"""What the kernel understands, what it refuses, and that it ignores nothing in silence."""

from __future__ import annotations

from typing import Any

import pytest

from tiermesh.errors import InvalidInput
from tiermesh.kernel.inference.chat import parse
from tiermesh.kernel.inference.sequence import Sampling
from tiermesh.kernel.inference.tools.definitions import Toolbox

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}
LIST_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}
BAD_CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}


def body(**parameters: object) -> dict[str, Any]:
    return {"model": "m", "messages": [USER], **parameters}


def test_defaults_are_openais() -> None:
    chat = parse(body())
    assert (chat.sampling.temperature, chat.sampling.top_p, chat.max_tokens) == (1.0, 1.0, None)
    assert (chat.stops, chat.stream, chat.include_usage, chat.n, chat.resumed) == ((), False, False, 1, ())
    assert chat.sampling == Sampling(temperature=1.0, seed=chat.sampling.seed)
    assert (chat.toolbox, chat.answer_schema) == (Toolbox(), None)


def test_without_a_seed_every_request_gets_its_own() -> None:
    assert parse(body()).sampling.seed != parse(body()).sampling.seed


def test_what_is_given_arrives_as_given() -> None:
    chat = parse(
        body(temperature=0.0, top_p=0.5, max_tokens=7, seed=0, stop=["a", "b"], stream=True)
        | {"stream_options": {"include_usage": True}}
    )
    assert (chat.sampling.temperature, chat.sampling.top_p, chat.sampling.seed, chat.max_tokens) == (0.0, 0.5, 0, 7)
    assert (chat.stops, chat.stream, chat.include_usage) == (("a", "b"), True, True)


def test_parameters_of_the_sampler() -> None:
    given = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.5}
    sampling = parse(body(**given, logit_bias={"7": -100}, logprobs=True, top_logprobs=3)).sampling
    assert {name: getattr(sampling, name) for name in given} == given
    assert (sampling.logit_bias, sampling.logprobs) == ({7: -100.0}, 3)
    assert parse(body(logprobs=True)).sampling.logprobs == 0
    assert parse(body(top_k=-1)).sampling.top_k == 0


def test_every_answer_of_several_has_a_seed_of_its_own_and_the_first_that_of_the_request() -> None:
    seeds = [parse(body(n=3, seed=5)).sampling_of(index).seed for index in range(3)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3
    assert seeds == [parse(body(n=3, seed=5)).sampling_of(index).seed for index in range(3)]


@pytest.mark.parametrize(
    ("wanted", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}}}, {"type": "array"}),
    ],
)
def test_response_formats(wanted: dict[str, Any], schema: dict[str, Any] | None) -> None:
    assert parse(body(response_format=wanted)).answer_schema == schema


def test_a_resumed_answer_begins_with_its_tokens() -> None:
    chat = parse(body(resume_token_ids=[1, 2], return_token_ids=True))
    assert (chat.resumed, chat.token_ids) == ((1, 2), True)


def test_tools_and_who_may_be_called() -> None:
    tools = [TOOL, {"type": "function", "function": {"name": "g", "strict": True}}]
    auto = parse(body(tools=tools)).toolbox
    assert [tool.name for tool in auto.callable] == ["f", "g"]
    assert (auto.required, auto.parallel, auto.strict) == (False, True, True)
    assert parse(body(tools=tools, tool_choice="none")).toolbox == Toolbox()
    assert parse(body(tools=tools, tool_choice="required", parallel_tool_calls=False)).toolbox.parallel is False
    named = parse(body(tools=tools, tool_choice={"type": "function", "function": {"name": "f"}})).toolbox
    assert ([tool.name for tool in named.tools], [tool.name for tool in named.callable]) == (["f", "g"], ["f"])
    assert (named.required, named.parallel, named.strict) == (True, False, False)


def test_calls_and_results_in_a_conversation() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "22"}]},
    ]
    _, assistant, result = parse({"model": "m", "messages": messages}).messages
    assert assistant["content"] == ""
    assert assistant["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert result == {"role": "tool", "content": "22", "tool_call_id": "c1", "name": "f"}


def test_the_newer_name_of_max_tokens_wins() -> None:
    assert parse(body(max_tokens=5, max_completion_tokens=6)).max_tokens == 6


def test_a_stop_may_be_one_string() -> None:
    assert parse(body(stop="END")).stops == ("END",)


@pytest.mark.parametrize(
    ("message", "understood"),
    [
        (USER, USER),
        ({"role": "developer", "content": "be brief"}, {"role": "system", "content": "be brief"}),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"content": "ab"},
        ),
        ({"role": "assistant", "content": "x", "refusal": None, "tool_calls": []}, {"content": "x"}),
    ],
)
def test_messages(message: dict[str, Any], understood: dict[str, str]) -> None:
    (parsed,) = parse({"model": "m", "messages": [message]}).messages
    assert {key: parsed[key] for key in understood} == understood


@pytest.mark.parametrize(
    "harmless",
    [
        {"n": 1},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}},
        {"logprobs": False, "top_logprobs": 0},
        {"response_format": {"type": "text"}},
        {"user": "me", "metadata": {"a": "b"}, "store": False},
        {"tools": None, "n": None, "logprobs": None, "stop": None, "temperature": None},
    ],
)
def test_values_that_ask_for_nothing_are_taken(harmless: dict[str, object]) -> None:
    assert parse(body(**harmless)).messages


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"n": 17}, "n"),
        ({"n": 2, "stream": True}, "n"),
        ({"n": 2, "resume_token_ids": [1]}, "n"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [LIST_TOOL]}, "tools[0].function.parameters.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice.function.name",
        ),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": "0.5"}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty"),
        ({"min_p": 1.5}, "min_p"),
        ({"top_k": 0.5}, "top_k"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"functions": [{}]}, "functions"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ["x" * 1025]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [USER, {"role": "robot", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool"}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
        ({"messages": [BAD_CALL]}, "messages[0].tool_calls[0].function.arguments"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [TOOL]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
    ],
)
def test_what_it_can_not_do_is_refused_by_name(wrong: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse(body(**wrong))
    assert refused.value.param == param
    assert str(refused.value).startswith(param)


@pytest.mark.parametrize("wrong", [None, [], "text", 5])
def test_a_body_that_is_no_object_is_refused(wrong: object) -> None:
    with pytest.raises(InvalidInput):
        parse(wrong)
