from __future__ import annotations

from typing import Any

import pytest

from tiermesh.kernel.training.data.records import BadRecord, Chat, Completion, Pair, Text, content_hash, understood
from tiermesh.protocol.training import Fields, Task

U, S = {"role": "user", "content": "hi"}, {"role": "system", "content": "be"}


def a(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


GOOD: list[tuple[dict[str, Any], Any]] = [
    ({"text": "x"}, Text("x")),
    ({"text": "x", "id": 7, "meta": {"a": 1}}, Text("x")),
    ({"prompt": "p", "completion": "c"}, Completion("p", "c")),
    ({"prompt": "", "completion": "c"}, Completion("", "c")),
    ({"prompt": "p", "response": "c"}, Completion("p", "c")),
    ({"instruction": "i", "input": "about", "output": "o"}, Completion("i\n\nabout", "o")),
    ({"instruction": "i", "input": "", "output": "o"}, Completion("i", "o")),
    ({"question": "q", "answer": "a"}, Completion("q", "a")),
    ({"messages": [S, U, a("x")]}, Chat((S, U, a("x")))),
    ({"messages": [{**U, "name": None}, a("x")]}, Chat((U, a("x")))),
    ({"messages": [U, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]}, Chat((U, a("x")))),
    ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "x"}]}, Chat((U, a("x")))),
    ({"messages": [U, a("x")], "tools": [{"a": 1}]}, Chat((U, a("x")), tools=({"a": 1},))),
    ({"prompt": [U], "completion": [a("x")]}, Chat((U, a("x")), first=1)),
    ({"prompt": [U, a("0"), U], "completion": "x"}, Chat((U, a("0"), U, a("x")), first=3)),
]


@pytest.mark.parametrize(("raw", "expected"), GOOD)
def test_records_are_told_by_their_fields(raw: dict[str, Any], expected: Any) -> None:
    assert understood(raw, Fields(), "finetune").example == expected


PAIRS: list[tuple[dict[str, Any], Any]] = [
    ({"prompt": "p", "chosen": "c", "rejected": "r"}, Pair(Completion("p", "c"), Completion("p", "r"))),
    (
        {"prompt": [U], "chosen": [a("c")], "rejected": [a("r")]},
        Pair(Chat((U, a("c")), first=1), Chat((U, a("r")), first=1)),
    ),
    (
        {"input": {"messages": [U]}, "preferred_output": [a("c")], "non_preferred_output": [a("r")]},
        Pair(Chat((U, a("c")), first=1), Chat((U, a("r")), first=1)),
    ),
    ({"prompt": [U], "chosen": "c", "rejected": "r"}, Pair(Chat((U, a("c")), first=1), Chat((U, a("r")), first=1))),
    (
        {"chosen": [U, a("same"), U, a("c")], "rejected": [U, a("same"), U, a("r")]},
        Pair(Chat((U, a("same"), U, a("c")), first=3), Chat((U, a("same"), U, a("r")), first=3)),
    ),
]


@pytest.mark.parametrize(("raw", "expected"), PAIRS)
def test_pairs_have_a_prompt_of_their_own_or_share_a_beginning(raw: dict[str, Any], expected: Any) -> None:
    assert understood(raw, Fields(), "preference").example == expected


BAD: list[tuple[Task, Any, str]] = [
    ("finetune", [1], "is a list, not an object with named fields"),
    ("finetune", "x", "is a text, not an object"),
    ("finetune", None, "is null, not an object"),
    ("finetune", {}, "has no text, prompt and completion, or messages; its fields are: none"),
    ("finetune", {"body": "x"}, "its fields are: body"),
    ("finetune", {"text": None}, "has no text"),
    ("finetune", {"text": " \n"}, "text: is empty"),
    ("finetune", {"text": 5}, "text: is a number, not a text"),
    ("finetune", {"text": "\ud800"}, "text: is not valid UTF-8"),
    ("finetune", {"prompt": "p"}, "its fields are: prompt"),
    ("finetune", {"prompt": "p", "completion": ""}, "completion: is empty"),
    ("finetune", {"prompt": 3, "completion": "c"}, "prompt: is a number, not a text"),
    ("finetune", {"messages": "hi"}, "messages: is a text, not a list of messages"),
    ("finetune", {"messages": []}, "messages: is an empty list, not a list of messages"),
    ("finetune", {"messages": {}}, "messages: is an object, not a list of messages"),
    ("finetune", {"messages": ["hi"]}, "messages[0]: is a text, not a message with role and content"),
    ("finetune", {"messages": [{"content": "x"}]}, "messages[0].role: is 'None', not one of assistant"),
    ("finetune", {"messages": [U, {"role": "bot", "content": "x"}]}, "messages[1].role: is 'bot'"),
    ("finetune", {"messages": [U]}, "has no turn of the assistant, so there is nothing to learn"),
    ("finetune", {"messages": [U, a(" ")]}, "messages[1].content: is empty"),
    ("finetune", {"messages": [{"role": "user"}, a("x")]}, "messages[0].content: is null, not a text"),
    (
        "finetune",
        {"messages": [U, {"role": "assistant", "content": [{"type": "image"}]}]},
        "has parts that are not text",
    ),
    ("finetune", {"messages": [U, a("x")], "tools": "t"}, "tools: is a text, not a list of definitions"),
    ("finetune", {"prompt": [U], "completion": [U]}, "has no turn of the assistant"),
    ("finetune", {"chosen": "a", "rejected": "b"}, "is a pair of answers"),
    ("finetune", {"preferred_output": [a("a")], "non_preferred_output": [a("b")]}, "is a pair of answers"),
    ("preference", {"prompt": "p", "chosen": "a"}, "has no rejected; its fields are: prompt, chosen"),
    ("preference", {"prompt": "p", "rejected": "a"}, "has no chosen"),
    ("preference", {"chosen": "a", "rejected": "b"}, "has no prompt; only conversations can do without one"),
    ("preference", {"prompt": "p", "chosen": "a", "rejected": "a "}, "are the same, so there is nothing to prefer"),
    ("preference", {"text": "x"}, "has no chosen"),
]


@pytest.mark.parametrize(("task", "raw", "reason"), BAD, ids=[reason for _, _, reason in BAD])
def test_what_can_not_be_used_says_why(task: Task, raw: Any, reason: str) -> None:
    with pytest.raises(BadRecord) as bad:
        understood(raw, Fields(), task)
    assert reason in str(bad.value)


def test_a_spec_may_name_the_fields() -> None:
    raw = {"ask": "q", "reply": "a", "text": "no", "importance": "2.5", "times": 3}
    found = understood(raw, Fields(prompt="ask", completion="reply", weight="importance", repeat="times"), "finetune")
    assert (found.example, found.weight, found.repeat) == (Completion("q", "a"), 2.5, 3.0)
    assert found.fields == ("ask", "reply", "importance", "times")
    assert understood(raw, Fields(text="reply"), "finetune").example == Text("a")
    with pytest.raises(BadRecord, match="has no body; its fields are"):
        understood({"text": "x"}, Fields(text="body"), "finetune")


@pytest.mark.parametrize("value", [-1, "much", float("nan"), float("inf"), [1]])
def test_a_weight_is_a_number_from_zero_on(value: Any) -> None:
    with pytest.raises(BadRecord, match=r"w: is .* not a weight \(a number from 0 on\)"):
        understood({"text": "x", "w": value}, Fields(weight="w"), "finetune")
    with pytest.raises(BadRecord, match="not a repeat"):
        understood({"text": "x", "r": 1001}, Fields(repeat="r"), "finetune")


def test_equal_contents_have_equal_hashes_whatever_white_space_and_names() -> None:
    def digest(raw: Any) -> bytes:
        return content_hash(understood(raw, Fields(), "finetune").example)

    assert digest({"prompt": "a  b\n", "completion": "c"}) == digest({"question": "a b", "answer": " c"})
    different: list[Any] = [
        {"text": "a b c"},
        {"prompt": "a b", "completion": "c"},
        {"prompt": "a", "completion": "b c"},
        {"messages": [U, a("x")]},
        {"messages": [S, U, a("x")]},
        {"messages": [U, a("X")]},
    ]
    assert len({digest(raw) for raw in different}) == len(different)
