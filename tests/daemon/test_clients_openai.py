"""OpenAI's own Python client against a node: chat, completions, responses, embeddings and models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.responses import Response, ResponseInputItemParam, ToolParam
from tests.daemon.still_mesh import StillMesh, still_mesh

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello there"}]
SCHEMA: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}}
CHAT_TOOL: ChatCompletionToolParam = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
TOOL: ToolParam = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}
MODELS = ("m", "m+tool", "m+half", "m+400", "m+500", "m+503", "m+stall")


@pytest.fixture
async def mesh() -> AsyncIterator[StillMesh]:
    async with still_mesh({"desk": None, "one": 1}, {"one": MODELS}) as mesh:
        mesh.set_policy({"limits": {"queue_timeout_s": 0.1}})  # a busy engine stays busy here
        yield mesh


@pytest.fixture
async def client(mesh: StillMesh) -> AsyncIterator[openai.AsyncOpenAI]:
    url = mesh.nodes["desk"].url + "/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def requests(mesh: StillMesh) -> list[dict[str, Any]]:
    """What the engine was asked, without what the gateway adds for itself."""
    fake = mesh.nodes["one"].fake
    assert fake is not None
    own = ("seed", "return_token_ids")
    return [{name: value for name, value in body.items() if name not in own} for body in fake.requests]


async def test_a_chat_is_answered_streamed_and_whole(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="m", messages=HELLO)
    assert whole.choices[0].message.content == "one: hello there"
    said = ""
    stream = await client.chat.completions.create(
        model="m", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        said += chunk.choices[0].delta.content or "" if chunk.choices else ""
        usage = chunk.usage
    assert (said, usage) == ("one: hello there", whole.usage)


async def test_a_chat_calls_tools(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model="m+tool", messages=HELLO, tools=[CHAT_TOOL]) as stream:
        (choice,) = (await stream.get_final_completion()).choices
    (call,) = choice.message.tool_calls or []
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert call.function.arguments == '{"city": "Paris"}'


async def test_a_prompt_is_completed(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(model="m", prompt="a b")
    (choice,) = whole.choices
    assert (choice.text, choice.finish_reason, whole.object) == ("one: a b", "stop", "text_completion")
    options: Any = {"include_usage": True}
    stream = await client.completions.create(model="m", prompt="a b", stream=True, stream_options=options)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "one: a b"
    assert (chunks[-2].choices[0].finish_reason, chunks[-1].usage) == ("stop", whole.usage)
    assert len({chunk.id for chunk in chunks}) == 1


async def test_several_prompts_are_answered_in_their_order(mesh: StillMesh, client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(model="m", prompt=["a b", "c"], echo=True, temperature=0.5, max_tokens=9)
    assert [(choice.index, choice.text) for choice in whole.choices] == [(0, "a bone: a b"), (1, "cone: c")]
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (3, 5, 8)
    asked = requests(mesh)[0]
    assert (asked["temperature"], asked["max_tokens"], asked["model"]) == (0.5, 9, "m")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": [1, 2]}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"prompt": ["a", "b"], "stream": True}, "prompt"),
        ({"prompt": ["a"] * 17}, "prompt"),
        ({"logprobs": -1}, "logprobs"),
        ({"extra_body": {"tools": []}}, "tools"),
    ],
)
async def test_what_no_chat_can_do_is_refused_by_name(
    client: openai.AsyncOpenAI, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(**{"model": "m", "prompt": "a"} | fields)
    assert caught.value.param == named


async def test_a_response_is_given(client: openai.AsyncOpenAI) -> None:
    response = await client.responses.create(model="m", input="hello there", instructions="Be brief.")
    assert (response.output_text, response.status, response.model) == ("one: hello there", "completed", "m")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (4, 3, 7)


async def test_a_streamed_response_is_the_whole_one(client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model="m", input="hello there") as stream:
        events = [event async for event in stream]
        response = await stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == [
        "one:",
        " hello",
        " there",
    ]
    whole = await client.responses.create(model="m", input="hello there")
    assert (response.output_text, response.usage) == (whole.output_text, whole.usage)
    assert [item.type for item in response.output] == ["message"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_response_calls_functions_and_takes_their_results(
    mesh: StillMesh, client: openai.AsyncOpenAI, streamed: bool
) -> None:
    given: list[ResponseInputItemParam] = [{"role": "user", "content": "hello there"}]
    response: Response
    if streamed:
        async with client.responses.stream(model="m+tool", input=given, tools=[TOOL]) as stream:
            response = await stream.get_final_response()
    else:
        response = await client.responses.create(model="m+tool", input=given, tools=[TOOL])
    (call,) = response.output
    assert call.type == "function_call"
    assert (call.name, call.arguments, call.status) == ("weather", '{"city": "Paris"}', "completed")
    given.append({"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments})
    given.append({"type": "function_call_output", "call_id": call.call_id, "output": "22 degrees"})
    response = await client.responses.create(model="m", input=given, tools=[TOOL], tool_choice="required")
    assert response.output_text == "one: 22 degrees"
    asked = requests(mesh)[-1]
    assert asked["tool_choice"] == "required"
    assert asked["tools"][0]["function"]["name"] == "weather"
    function = {"name": "weather", "arguments": '{"city": "Paris"}'}
    assert asked["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "22 degrees"},
    ]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0]"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
async def test_what_no_mesh_can_do_is_refused_by_name(
    client: openai.AsyncOpenAI, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(**{"model": "m", "input": "a"} | fields)
    assert caught.value.param == named


ERRORS: dict[str, type[openai.APIStatusError]] = {
    "nobody": openai.NotFoundError,
    "tier:9": openai.NotFoundError,
    "m+400": openai.BadRequestError,
    "m+500": openai.InternalServerError,
    "m+503": openai.InternalServerError,
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("model", ERRORS)
async def test_errors_are_the_clients_own(client: openai.AsyncOpenAI, model: str, streamed: bool) -> None:
    for create, asked in (
        (client.chat.completions.create, {"messages": HELLO}),
        (client.completions.create, {"prompt": "a"}),
        (client.responses.create, {"input": "a"}),
    ):
        with pytest.raises(ERRORS[model]):
            await create(model=model, stream=streamed, **asked)


async def test_a_stream_that_breaks_raises(client: openai.AsyncOpenAI) -> None:
    completions = await client.completions.create(model="m+half", prompt="a b", stream=True)
    responses = await client.responses.create(model="m+half", input="a b", stream=True)
    for stream in (completions, responses):
        with pytest.raises(openai.APIError, match="broke off"):
            _ = [part async for part in stream]


async def test_models_and_embeddings(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()][:3] == ["auto", "tier:1", "m"]
    answer = await client.embeddings.create(model="m", input=["four", "sixsix"], encoding_format="float")
    assert [row.embedding[0] for row in answer.data] == [4.0, 6.0]
