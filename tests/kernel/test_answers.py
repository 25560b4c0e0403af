"""What a client is told of what the generator emits, in OpenAI's shapes."""

from __future__ import annotations

import base64
import struct
from typing import Any

from tiermesh.kernel.inference.answers import Answer, embeddings, model_list
from tiermesh.kernel.inference.sequence import Choice, Finished, Text
from tiermesh.kernel.inference.tools.family import HERMES
from tiermesh.kernel.inference.tools.parser import CallParser
from tiermesh.kernel.inference.transcript import CallPart, Part, Transcript, call_id, gathered

TOKENS = {1: b"a", 2: "ö".encode()[:1], 3: "ö".encode()[1:], 9: b"<|end|>"}


def transcript(*, tools: bool = False, one_call: bool = False, resumed: int = 0, seed: int = 7) -> Transcript:
    parser = CallParser(HERMES, {"f"}) if tools else None
    return Transcript(parser, seed=seed, one_call=one_call, resumed=resumed)


def said(told: Transcript, *texts: str) -> list[Part]:
    """One token a text."""
    parts = [told.take(Text(text, (Choice(1),))) for text in texts]
    return [part for part in parts if part is not None]


def choice(body: Any) -> Any:
    (only,) = body["choices"]
    return only


def test_text_with_its_tokens() -> None:
    told = transcript()
    (part,) = said(told, "hi")
    assert part == Part(content="hi", token_ids=[1], choices=[Choice(1)])
    end = told.finish(Finished("stop", 2, (Choice(9),)))
    assert (end.content, end.token_ids, end.choices, end.reason) == ("", [9], [], "stop")
    assert told.tokens == 2


def test_what_was_held_back_comes_with_the_end_so_that_a_stream_cut_before_it_repeats_nothing() -> None:
    told = transcript()
    said(told, "a")
    assert told.take(Text("tail")) is None
    end = told.finish(Finished("stop", 2, (Choice(9),)))
    assert (end.content, end.token_ids) == ("tail", [9])


def test_a_call_and_why_the_answer_ended() -> None:
    told = transcript(tools=True)
    parts = said(told, "Yes.", "\n<tool_call>\n{", '"name": "f", "arg', 'uments": {"a"', ": 1}}", "\n</tool_call>")
    parts.append(told.finish(Finished("stop", 7, (Choice(9),))))
    identity = call_id(7, 0)
    assert [part.calls for part in parts if part.calls] == [
        [CallPart(0, identity, "f")],
        [CallPart(0, arguments='{"a"')],
        [CallPart(0, arguments=": 1}")],
    ]
    whole = gathered(parts)
    assert (whole.content, whole.calls) == ("Yes.", [CallPart(0, identity, "f", '{"a": 1}')])
    assert (whole.reason, whole.token_ids) == ("tool_calls", [1] * 6 + [9])


def test_a_call_cut_short_ended_by_its_length() -> None:
    told = transcript(tools=True)
    said(told, '<tool_call>{"name": "f", "arguments": {')
    assert told.finish(Finished("length", 1)).reason == "length"


def test_without_parallel_calls_the_answer_is_over_with_the_first() -> None:
    told = transcript(tools=True, one_call=True)
    said(told, '<tool_call>{"name": "f", "arguments": {}')
    assert not told.over
    said(told, "}")
    assert told.over
    assert (told.finish().reason, told.tokens) == ("tool_calls", 2)


def test_a_resumed_answer_goes_on_where_it_was_cut() -> None:
    texts = ["On", " <tool_", 'call>{"name": "f"', ', "arguments": {"a": ', "1}}</tool_call>", " bye"]
    told = transcript(tools=True)
    undisturbed = [*said(told, *texts), told.finish(Finished("stop", 7))]
    for cut in range(1, len(texts)):
        other = transcript(tools=True, resumed=cut)
        other.replay("".join(texts[:cut]))
        rest = [*said(other, *texts[cut:]), other.finish(Finished("stop", 7))]
        assert gathered(undisturbed[:cut] + rest) == gathered(undisturbed)
        assert other.tokens == told.tokens


def test_ids_of_calls_depend_on_seed_and_index_alone() -> None:
    assert call_id(1, 0) == call_id(1, 0)
    assert len({call_id(seed, index) for seed in range(3) for index in range(3)}) == 9


def test_a_whole_answer() -> None:
    answer = Answer("m", 5)
    body: Any = answer.whole([Part(content="hi", reason="stop")], answer.usage(2, 3))
    assert (body["object"], body["model"]) == ("chat.completion", "m")
    assert choice(body) == {
        "index": 0,
        "message": {"role": "assistant", "content": "hi"},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert body["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


def test_a_whole_answer_that_calls_a_tool_has_no_text() -> None:
    part = Part(calls=[CallPart(0, "c", "f", "{}")], reason="tool_calls")
    answer = Answer("m", 5)
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = choice(answer.whole([part], {}))["message"]
    assert message == {"role": "assistant", "content": None, "tool_calls": [call]}


def test_chunks() -> None:
    answer = Answer("m", 5)
    assert choice(answer.chunk(Part(), first=True))["delta"] == {"role": "assistant", "content": ""}
    assert choice(answer.chunk(Part(content="x")))["delta"] == {"content": "x"}
    begun = choice(answer.chunk(Part(calls=[CallPart(0, "c", "f")])))["delta"]["tool_calls"]
    assert begun == [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]
    more = choice(answer.chunk(Part(calls=[CallPart(0, arguments="{")])))["delta"]["tool_calls"]
    assert more == [{"index": 0, "function": {"arguments": "{"}}]
    assert choice(answer.chunk(Part(content="tail", reason="stop")))["finish_reason"] == "stop"


def test_token_ids_are_there_when_they_were_asked_for() -> None:
    part = Part(content="a", token_ids=[1, 2])
    assert choice(Answer("m", 5, token_ids=True).chunk(part))["token_ids"] == [1, 2]
    assert "token_ids" not in choice(Answer("m", 5).chunk(part))


def test_logprobs_name_tokens_and_their_bytes() -> None:
    answer = Answer("m", 5, bytes_of=TOKENS.__getitem__)
    part = Part(content="a", choices=[Choice(1, -0.5, ((1, -0.5), (2, -1.0)))])
    assert choice(answer.chunk(part))["logprobs"] == {
        "content": [
            {
                "token": "a",
                "logprob": -0.5,
                "bytes": [97],
                "top_logprobs": [
                    {"token": "a", "logprob": -0.5, "bytes": [97]},
                    {"token": "\N{REPLACEMENT CHARACTER}", "logprob": -1.0, "bytes": [0xC3]},
                ],
            }
        ],
        "refusal": None,
    }
    assert choice(answer.chunk(Part()))["logprobs"] is None


def test_embeddings_as_numbers_and_as_base64() -> None:
    body: Any = embeddings("m", [[0.5, -1.0]], 3, as_base64=False)
    assert body["data"] == [{"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}]
    assert (body["object"], body["model"]) == ("list", "m")
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    packed: Any = embeddings("m", [[0.5, -1.0]], 3, as_base64=True)
    assert struct.unpack("<2f", base64.b64decode(packed["data"][0]["embedding"])) == (0.5, -1.0)


def test_adapters_are_models_beside_their_base() -> None:
    listed: Any = model_list("m", "sha256:1", ["a"])
    assert [card["id"] for card in listed["data"]] == ["m", "a"]
    assert listed["data"][1]["parent"] == "m"
