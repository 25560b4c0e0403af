"""What a request may ask for beyond plain text, of a real worker with a model of random weights."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tests import tiny_model
from tests.kernel.workers import WorkerProcess, counted, question, streamed_text, text_of

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "fox",
            "parameters": {
                "type": "object",
                "properties": {"jumps": {"type": "integer", "minimum": 0, "maximum": 99}, "lazy": {"type": "boolean"}},
                "required": ["jumps", "lazy"],
            },
        },
    }
]


async def test_openais_own_client_reads_all_of_it(worker: WorkerProcess) -> None:
    """Its models are lenient about what is missing, and strict enough about what is wrong."""
    parameters: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "logprobs": True, "top_logprobs": 1}
    whole = ChatCompletion.model_validate(await worker.ask(**parameters, max_tokens=200), strict=True)
    assert whole.choices[0].message.tool_calls
    assert whole.choices[0].logprobs is not None
    chunks = [
        ChatCompletionChunk.model_validate(event, strict=True)
        for event in await worker.stream(**parameters, max_tokens=200, stream_options={"include_usage": True})
    ]
    assert any(chunk.choices and chunk.choices[0].delta.tool_calls for chunk in chunks)
    assert chunks[-1].usage is not None


async def test_several_answers_to_one_request(worker: WorkerProcess) -> None:
    parameters: dict[str, Any] = {"max_tokens": 12, "temperature": 1.5, "seed": 5}
    answer = await worker.ask(n=3, **parameters)
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts[0] == text_of(await worker.ask(**parameters))
    assert answer["usage"]["completion_tokens"] == 36


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("cut", [1, 7, 23, 39])
async def test_an_answer_cut_anywhere_and_resumed_from_its_tokens_is_the_same(
    worker: WorkerProcess, cut: int, temperature: float
) -> None:
    parameters: dict[str, Any] = {"temperature": temperature, "seed": 9, "max_tokens": 40, "return_token_ids": True}
    parameters |= {"stop": "never said", "repetition_penalty": 1.2, "stream_options": {"include_usage": True}}
    whole = await worker.stream(**parameters)
    ids = [token for event in whole if event["choices"] for token in event["choices"][0]["token_ids"]]
    shown = [event for event in whole if event["choices"]][: cut + 1]  # the first chunk has the role alone
    rest = await worker.stream(**parameters, resume_token_ids=ids[:cut])
    assert streamed_text(shown) + streamed_text(rest) == streamed_text(whole)
    assert [token for event in rest if event["choices"] for token in event["choices"][0]["token_ids"]] == ids[cut:]
    assert counted(rest[-1]) == counted(whole[-1])
    assert "role" not in rest[0]["choices"][0]["delta"]


async def test_an_answer_that_was_cut_behind_its_only_call_is_over(worker: WorkerProcess) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    parameters: dict[str, Any] = {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "f"}}}
    parameters |= {"temperature": 0.0, "return_token_ids": True, "stream_options": {"include_usage": True}}
    whole = await worker.stream(**parameters)
    ids = [token for event in whole if event["choices"] for token in event["choices"][0]["token_ids"]]
    rest = await worker.stream(**parameters, resume_token_ids=ids)
    assert [event["choices"][0]["finish_reason"] for event in rest if event["choices"]] == ["tool_calls"]
    assert counted(rest[-1]) == counted(whole[-1])


async def test_token_ids_of_a_whole_answer(worker: WorkerProcess) -> None:
    answer = await worker.ask(temperature=0.0, max_tokens=9, return_token_ids=True)
    assert len(answer["choices"][0]["token_ids"]) == 9


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_are_those_of_every_token(worker: WorkerProcess, stream: bool) -> None:
    parameters: dict[str, Any] = {"temperature": 0.0, "max_tokens": 40, "logprobs": True, "top_logprobs": 2}
    if stream:
        events = await worker.stream(**parameters)
        shown = [event["choices"][0]["logprobs"] for event in events]
        tokens = [token for logprobs in shown if logprobs for token in logprobs["content"]]
        text = streamed_text(events)
    else:
        answer = await worker.ask(**parameters)
        tokens, text = answer["choices"][0]["logprobs"]["content"], text_of(answer)
    assert len(tokens) == 40
    said = [token["bytes"] for token in tokens if token["token"] not in tiny_model.SPECIAL]
    assert b"".join(map(bytes, said)).decode("utf-8", "ignore") == text.replace("\N{REPLACEMENT CHARACTER}", "")
    for token in tokens:
        likeliest, second = token["top_logprobs"]
        assert 0 >= token["logprob"] == likeliest["logprob"] >= second["logprob"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "fox"}}])
async def test_a_call_that_is_required_comes_and_is_as_defined(
    worker: WorkerProcess, choice: Any, stream: bool
) -> None:
    """Even from a model that says nonsense."""
    parameters: dict[str, Any] = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False, "seed": 3}
    whole = (await worker.ask(**parameters))["choices"][0]
    assert (whole["finish_reason"], whole["message"]["content"]) == ("tool_calls", None)
    (call,) = whole["message"]["tool_calls"]
    assert call["function"]["name"] == "fox"
    arguments = json.loads(call["function"]["arguments"])
    assert 0 <= arguments["jumps"] <= 99
    assert set(arguments) == {"jumps", "lazy"}
    if stream:
        events = await worker.stream(**parameters)
        pieces = [piece for event in events for piece in event["choices"][0]["delta"].get("tool_calls", [])]
        assert pieces[0] == {
            "index": 0,
            "id": call["id"],
            "type": "function",
            "function": {"name": "fox", "arguments": pieces[0]["function"]["arguments"]},
        }
        assert "".join(piece["function"]["arguments"] for piece in pieces) == call["function"]["arguments"]
        assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_an_answer_in_json_is_valid_whatever_the_model_would_have_said(worker: WorkerProcess) -> None:
    """Alone and beside others; 100 answers."""
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "kind": {"enum": ["fox", "dog"]},
            "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 150}, "maxItems": 3},
        },
        "required": ["name", "kind", "ages"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema, "strict": True}}
    answers = [await worker.ask("an animal", response_format=wanted, seed=seed, n=10) for seed in range(10)]
    texts = [choice["message"]["content"] for answer in answers for choice in answer["choices"]]
    parsed = [json.loads(text) for text in texts]
    assert len(set(texts)) > 50
    assert all(set(animal) == {"name", "kind", "ages"} for animal in parsed)
    assert all(len(animal["name"]) <= 12 and animal["kind"] in ("fox", "dog") for animal in parsed)
    assert all(0 <= age <= 150 for animal in parsed for age in animal["ages"])


async def test_a_schema_that_can_not_be_enforced_is_a_clear_400(worker: WorkerProcess) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://localhost/x"}}}
    status, answer = await worker.post(question("x", response_format=wanted))
    assert (status, answer["error"]["param"]) == (400, "response_format")


async def test_what_a_bias_forbids_is_not_said(worker: WorkerProcess) -> None:
    parameters: dict[str, Any] = {"temperature": 0.0, "max_tokens": 20, "return_token_ids": True}
    (usual,) = (await worker.ask(**parameters))["choices"]
    forbidden = usual["token_ids"][0]
    (other,) = (await worker.ask(**parameters, logit_bias={str(forbidden): -100}))["choices"]
    assert forbidden not in other["token_ids"]


async def test_embeddings_tell_texts_apart_and_have_length_1(worker: WorkerProcess) -> None:
    async with worker.session() as session:

        async def embed(**body: object) -> tuple[int, Any]:
            async with session.post("http://w/v1/embeddings", json={"model": tiny_model.NAME, **body}) as response:
                return response.status, await response.json()

        status, answer = await embed(input=["the fox", "the fox", "a dog"])
        assert status == 200
        first, again, other = [row["embedding"] for row in answer["data"]]
        assert first == pytest.approx(again)
        assert first != pytest.approx(other)
        assert len(first) == tiny_model.HIDDEN
        assert sum(number**2 for number in first) == pytest.approx(1.0, abs=1e-4)
        assert (await embed(input="x", dimensions=tiny_model.HIDDEN))[0] == 200
        wrongs: tuple[dict[str, Any], ...] = (
            {"input": []},
            {"input": "x", "dimensions": 7},
            {"input": "x", "truncate": True},
            {"input": [10**6]},
            {"input": "x" * 40_000},
        )
        for wrong in wrongs:
            status, answer = await embed(**wrong)
            assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
