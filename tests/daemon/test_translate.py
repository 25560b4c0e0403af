"""Translations, where no client is needed to see whether they are right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest

from tiermesh.daemon.api import translate_anthropic, translate_ollama, translate_responses
from tiermesh.daemon.api.response_telling import ResponseTelling
from tiermesh.daemon.api.said import CallPiece, Piece, Tokens, pieces_in, pieces_of
from tiermesh.daemon.api.translate_anthropic import MessageTelling
from tiermesh.daemon.api.translate_completions import CompletionTelling
from tiermesh.daemon.api.translate_ollama import OllamaTelling
from tiermesh.daemon.api.translated import Telling
from tiermesh.errors import EngineFailed, InvalidInput
from tiermesh.protocol.anthropic import MessagesRequest
from tiermesh.protocol.completions import CompletionRequest
from tiermesh.protocol.ollama import OllamaChatRequest
from tiermesh.protocol.responses import ResponsesRequest

Json = dict[str, Any]

USER = {"role": "user", "content": "x"}
CALL = CallPiece(0, "call_a", "weather", '{"city"')
REST = CallPiece(0, "", "", ': "Paris"}')
SECOND = CallPiece(1, "call_b", "time", "{}")
ANSWER = (
    Piece(thought="Hm."),
    Piece(text="Let me"),
    Piece(text=" see."),
    Piece(calls=(CALL,)),
    Piece(calls=(REST,)),
    Piece(calls=(SECOND,)),
    Piece(finish_reason="tool_calls"),
    Piece(tokens=Tokens(10, 5, 4)),
)
"""Thoughts, text and two calls."""


def message(**fields: object) -> MessageTelling:
    asked = MessagesRequest.model_validate({"model": "m", "max_tokens": 9, "messages": [USER], **fields})
    return MessageTelling(asked, "m")


def response(**fields: object) -> ResponseTelling:
    return ResponseTelling(ResponsesRequest.model_validate({"input": "x", **fields}), "m", created_at=1.0)


def ollama(**fields: object) -> OllamaTelling:
    asked = OllamaChatRequest.model_validate({"model": "m", "messages": [USER], **fields})
    clock = count(1)
    now = lambda: float(next(clock))  # noqa: E731
    return OllamaTelling(asked, "m", said_in="message", created_at="then", now=now, asked_at=0.0)


def completion(**fields: object) -> CompletionTelling:
    return CompletionTelling(CompletionRequest.model_validate({"prompt": "x", **fields}), "x", "m", "cmpl-1", 1)


def told(telling: Telling, pieces: Sequence[Piece]) -> list[Json]:
    """Every event or line of a stream, and the whole answer last."""
    stream = b"".join([telling.begin(), *(telling.take(piece) for piece in pieces), telling.end()]).decode()
    if telling.media_type == "application/x-ndjson":
        lines = stream.splitlines()
    else:
        lines = [line[6:] for line in stream.split("\n") if line.startswith("data: ")]
    return [*(json.loads(line) for line in lines if line != "[DONE]"), json.loads(json.dumps(telling.body()))]


def test_a_message_has_its_blocks_one_after_another() -> None:
    *events, whole = told(message(thinking={"type": "enabled", "budget_tokens": 1024}), ANSWER)
    assert [(event["type"], event.get("index")) for event in events] == [
        ("message_start", None),
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", 2),
        ("content_block_delta", 2),
        ("content_block_stop", 2),
        ("content_block_start", 3),
        ("content_block_delta", 3),
        ("content_block_stop", 3),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert whole["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "call_a", "name": "weather", "input": {"city": "Paris"}},
        {"type": "tool_use", "id": "call_b", "name": "time", "input": {}},
    ]
    assert whole["stop_reason"] == events[-2]["delta"]["stop_reason"] == "tool_use"
    usage = {"input_tokens": 6, "output_tokens": 5, "cache_read_input_tokens": 4}
    assert whole["usage"] == events[-2]["usage"] == usage


def test_thoughts_are_shown_to_who_asked_for_them() -> None:
    assert [block["type"] for block in told(message(), ANSWER)[-1]["content"]] == ["text", "tool_use", "tool_use"]
    assert "thinking" not in told(ollama(think=False), ANSWER)[-1]["message"]
    assert told(ollama(), ANSWER)[-1]["message"]["thinking"] == "Hm."


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (Piece(finish_reason="stop"), "end_turn"),
        (Piece(finish_reason="length"), "max_tokens"),
        (Piece(finish_reason="content_filter"), "refusal"),
        (Piece(finish_reason="stop", stop="END"), "stop_sequence"),
        (Piece(calls=(SECOND,), finish_reason="stop"), "tool_use"),
    ],
)
def test_a_message_says_why_it_ends(last: Piece, reason: str) -> None:
    assert told(message(), [Piece(text="a"), last])[-1]["stop_reason"] == reason


def test_a_response_has_its_items_one_after_another() -> None:
    *events, whole = told(response(), ANSWER)
    added = [event["item"]["type"] for event in events if event["type"] == "response.output_item.added"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert added == ["message", "function_call", "function_call"]
    assert done == whole["output"] == events[-1]["response"]["output"]
    assert [item["status"] for item in done] == ["completed"] * 3
    assert whole["output"][1]["arguments"] == '{"city": "Paris"}'
    assert (events[-1]["type"], whole["status"]) == ("response.completed", "completed")


def test_a_response_that_was_cut_at_its_limit_is_incomplete() -> None:
    *events, whole = told(response(), [Piece(text="a"), Piece(finish_reason="length")])
    assert events[-1]["type"] == "response.incomplete"
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert whole["output"][0]["status"] == "incomplete"


def test_ollama_tells_calls_whole_and_last() -> None:
    *lines, whole = told(ollama(), ANSWER)
    assert [line["done"] for line in lines] == [False, False, False, False, True]
    calls = [call["function"] for call in lines[3]["message"]["tool_calls"]]
    assert [(call["name"], call["arguments"]) for call in calls] == [("weather", {"city": "Paris"}), ("time", {})]
    assert whole["message"]["content"] == "Let me see."
    assert whole["message"]["tool_calls"] == lines[3]["message"]["tool_calls"]
    assert (whole["prompt_eval_count"], whole["eval_count"]) == (10, 5)
    assert whole["total_duration"] == whole["prompt_eval_duration"] + whole["eval_duration"] == 2 * 10**9


LOGPROBS = tuple(
    {"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "b", "logprob": -1.0, "bytes": None}]}
    for token in ("Hel", "lo")
)


def test_completions_tell_logprobs_the_old_way() -> None:
    first, second, whole = told(
        completion(logprobs=1), [Piece(text="Hello", logprobs=LOGPROBS), Piece(finish_reason="length")]
    )
    assert first["choices"][0]["logprobs"] == {
        "tokens": ["Hel", "lo"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"b": -1.0}, {"b": -1.0}],
        "text_offset": [0, 3],
    }
    assert (second["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]) == ("length", "length")
    assert whole["choices"][0]["logprobs"] == first["choices"][0]["logprobs"]


def test_completions_keep_their_choices_apart() -> None:
    pieces = [Piece(0, "a"), Piece(1, "b"), Piece(1, finish_reason="stop"), Piece(0, finish_reason="stop")]
    whole = told(completion(n=2), pieces)[-1]
    assert [(choice["index"], choice["text"]) for choice in whole["choices"]] == [(0, "a"), (1, "b")]


@pytest.mark.parametrize("make", [message, response, ollama])
def test_a_call_that_was_cut_at_the_limit_is_told_as_cut(make: Any) -> None:
    """Half a call is none to Anthropic's and Ollama's clients, and an incomplete item to OpenAI's."""
    *_, whole = told(make(), [Piece(text="a"), Piece(calls=(CALL,)), Piece(finish_reason="length")])
    if make is message:
        assert ([block["type"] for block in whole["content"]], whole["stop_reason"]) == (["text"], "max_tokens")
    elif make is response:
        assert [item["status"] for item in whole["output"]] == ["completed", "incomplete"]
    else:
        assert ("tool_calls" in whole["message"], whole["done_reason"]) == (False, "length")


@pytest.mark.parametrize("make", [message, ollama])
def test_a_call_that_is_no_call_is_the_engines_failure(make: Any) -> None:
    with pytest.raises(EngineFailed, match="no JSON object"):
        told(make(), [Piece(calls=(CallPiece(0, "c", "weather", "[1]"),)), Piece(finish_reason="tool_calls")])


@pytest.mark.parametrize("make", [message, response])
@pytest.mark.parametrize("calls", [[CallPiece(0)], [CALL, SECOND, REST]])
def test_calls_out_of_order_are_the_engines_failure(make: Any, calls: list[CallPiece]) -> None:
    with pytest.raises(EngineFailed, match="a tool call"):
        told(make(), [Piece(calls=(call,)) for call in calls])


@pytest.mark.parametrize(
    "choice",
    [
        {"delta": {"content": ["parts"]}},
        {"delta": {"content": "\ud83d"}},
        {"delta": {}, "finish_reason": 7},
        {"delta": {"tool_calls": [7]}},
        {"delta": {"tool_calls": [{"index": "one"}]}},
        {"index": 1e999},
        {"logprobs": {"content": [{"logprob": 0}]}},
        "choice",
    ],
)
def test_what_can_not_be_read_is_the_engines_failure(choice: object) -> None:
    with pytest.raises(EngineFailed, match="can't be read"):
        list(pieces_of(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"))


def test_a_whole_answer_and_a_stream_are_read_alike() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    said = {"role": "assistant", "content": "Hi", "reasoning_content": "Hm.", "tool_calls": [call]}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
    whole = {"choices": [{"index": 0, "message": said, "finish_reason": "stop"}], "usage": usage}
    chunk = {"choices": [{"index": 0, "delta": said, "finish_reason": "stop"}], "usage": usage}
    expected = [
        Piece(0, "Hi", "Hm.", (CallPiece(0, "c", "f", '{"a": 1}'),), "stop"),
        Piece(tokens=Tokens(3, 2, 1)),
    ]
    assert pieces_in(json.dumps(whole).encode()) == expected
    assert list(pieces_of(b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n")) == expected


def test_an_error_event_is_the_engines_failure() -> None:
    with pytest.raises(EngineFailed, match="no memory"):
        list(pieces_of(b'data: {"error": {"message": "no memory"}}\n\n'))


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "abc"}}
USE = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "no"}], "is_error": True}


def test_blocks_become_messages() -> None:
    asked = MessagesRequest.model_validate(
        {
            "model": "m",
            "max_tokens": 9,
            "system": "Be brief.",
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "look"}, IMAGE]},
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": ""}, USE]},
                {"role": "user", "content": [{"type": "text", "text": "and?"}, RESULT]},
            ],
        }
    )
    function = {"name": "f", "arguments": '{"a": 1}'}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,abc"}}
    assert translate_anthropic.chat_body(asked)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "look"}, image]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "t", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "t", "content": "Error: no"},
        {"role": "user", "content": "and?"},
    ]


@pytest.mark.parametrize(
    ("block", "role"),
    [
        ({"type": "document", "source": {}}, "user"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "user"),
        ({"type": "image"}, "assistant"),
        ({"type": "tool_use", "id": "t", "name": "f", "input": "x"}, "assistant"),
    ],
)
def test_blocks_that_can_not_be_shown_are_refused(block: Json, role: str) -> None:
    asked = MessagesRequest.model_validate(
        {"model": "m", "max_tokens": 9, "messages": [{"role": role, "content": [block]}]}
    )
    with pytest.raises(InvalidInput) as caught:
        translate_anthropic.chat_body(asked)
    assert caught.value.param == "messages[0].content[0]"


def test_results_find_their_calls() -> None:
    calls = [{"function": {"name": "f", "arguments": {}}}, {"function": {"name": "g", "arguments": {}}}]
    messages = [
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "content": "of g", "tool_name": "g"},
        {"role": "tool", "content": "of f"},
        {"role": "assistant", "tool_calls": [{"id": "own", "function": {"name": "f"}}]},
        {"role": "tool", "content": "by id", "tool_call_id": "own"},
    ]
    asked = OllamaChatRequest.model_validate({"model": "m", "messages": messages})
    found = translate_ollama.chat_body(asked)["messages"]
    assert [call["id"] for message in found for call in message.get("tool_calls", ())] == ["call_0", "call_1", "own"]
    results = [(message["content"], message["tool_call_id"]) for message in found if message["role"] == "tool"]
    assert results == [("of g", "call_1"), ("of f", "call_0"), ("by id", "own")]


def test_items_become_messages() -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
    ]
    asked = ResponsesRequest.model_validate({"input": items, "text": {"format": {"type": "json_object"}}})
    body = translate_responses.chat_body(asked)
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "tool"]
    assert [call["id"] for call in body["messages"][2]["tool_calls"]] == ["a", "b"]
    assert body["messages"][2]["content"] == "Let me see."
    assert body["response_format"] == {"type": "json_object"}
