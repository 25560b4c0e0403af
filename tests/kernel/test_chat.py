"""What the kernel understands, what it refuses, and that it ignores nothing in silence."""

from __future__ import annotations

from typing import Any

import pytest

from tiermesh.errors import InvalidInput
from tiermesh.kernel.inference.chat import parse

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}


def body(**parameters: object) -> dict[str, Any]:
    return {"model": "m", "messages": [USER], **parameters}


def test_defaults_are_openais() -> None:
    chat = parse(body())
    assert (chat.sampling.temperature, chat.sampling.top_p, chat.max_tokens) == (1.0, 1.0, None)
    assert (chat.stops, chat.stream, chat.include_usage) == ((), False, False)


def test_without_a_seed_every_request_gets_its_own() -> None:
    assert parse(body()).sampling.seed != parse(body()).sampling.seed


def test_what_is_given_arrives_as_given() -> None:
    chat = parse(
        body(temperature=0.0, top_p=0.5, max_tokens=7, seed=0, stop=["a", "b"], stream=True)
        | {"stream_options": {"include_usage": True}}
    )
    assert (chat.sampling.temperature, chat.sampling.top_p, chat.sampling.seed, chat.max_tokens) == (0.0, 0.5, 0, 7)
    assert (chat.stops, chat.stream, chat.include_usage) == (("a", "b"), True, True)


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
        ({"n": 2}, "n"),
        ({"tools": [TOOL]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_k": 5}, "top_k"),
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
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "tool_calls": [TOOL]}]}, "messages[0].tool_calls"),
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
