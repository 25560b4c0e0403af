"""Anthropic's own Python client against a node: it finds what it expects, errors included."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, MessageParam, ToolParam
from tests.daemon.still_mesh import StillMesh, still_mesh

HELLO: list[MessageParam] = [{"role": "user", "content": "hello there"}]
WEATHER: ToolParam = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
MODELS = ("m", "m+tool", "m+half", "m+400", "m+500", "m+503", "m+stall")


@pytest.fixture
async def mesh() -> AsyncIterator[StillMesh]:
    async with still_mesh({"desk": None, "one": 1}, {"one": MODELS}) as mesh:
        mesh.set_policy({"limits": {"queue_timeout_s": 0.1}})  # a busy engine stays busy here
        yield mesh


@pytest.fixture
async def client(mesh: StillMesh) -> AsyncIterator[anthropic.AsyncAnthropic]:
    url = mesh.nodes["desk"].url
    async with anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def heard(mesh: StillMesh) -> dict[str, Any]:
    """The last request that the engine got."""
    fake = mesh.nodes["one"].fake
    assert fake is not None
    return fake.requests[-1]


async def test_a_message_is_answered(client: anthropic.AsyncAnthropic) -> None:
    message = await client.messages.create(model="m", max_tokens=9, messages=HELLO)
    (block,) = message.content
    assert block.type == "text"
    assert (block.text, message.stop_reason, message.role, message.model) == (
        "one: hello there",
        "end_turn",
        "assistant",
        "m",
    )
    assert (message.usage.input_tokens, message.usage.output_tokens) == (2, 3)


async def test_a_streamed_message_is_the_whole_one(client: anthropic.AsyncAnthropic) -> None:
    async with client.messages.stream(model="m", max_tokens=9, messages=HELLO) as stream:
        texts = [text async for text in stream.text_stream]
        message = await stream.get_final_message()
    assert texts == ["one:", " hello", " there"]
    whole = await client.messages.create(model="m", max_tokens=9, messages=HELLO)
    assert message.content[0].to_dict()["text"] == whole.content[0].to_dict()["text"]
    assert (message.stop_reason, message.usage.to_dict()) == (whole.stop_reason, whole.usage.to_dict())


@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_are_called_and_their_results_taken(
    mesh: StillMesh, client: anthropic.AsyncAnthropic, streamed: bool
) -> None:
    asked: dict[str, Any] = {"model": "m+tool", "max_tokens": 9, "messages": HELLO, "tools": [WEATHER]}
    message: Message
    if streamed:
        async with client.messages.stream(**asked) as stream:
            message = await stream.get_final_message()
    else:
        message = await client.messages.create(**asked)
    (call,) = message.content
    assert call.type == "tool_use"
    assert (message.stop_reason, call.name, call.input) == ("tool_use", "weather", {"city": "Paris"})
    assert heard(mesh)["tools"][0]["function"] == {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": WEATHER["input_schema"],
    }
    turn: list[MessageParam] = [
        *HELLO,
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "22 degrees"}]},
    ]
    message = await client.messages.create(model="m", max_tokens=9, messages=turn, tools=[WEATHER])
    assert message.content[0].to_dict()["text"] == "one: 22 degrees"
    assert heard(mesh)["messages"][1]["tool_calls"] == [
        {"id": call.id, "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    ]
    assert heard(mesh)["messages"][2] == {"role": "tool", "tool_call_id": call.id, "content": "22 degrees"}


async def test_settings_arrive(mesh: StillMesh, client: anthropic.AsyncAnthropic) -> None:
    await client.messages.create(
        model="m:latest",
        max_tokens=2,
        messages=HELLO,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 40},  # newer clients have no arguments for them
        stop_sequences=["END"],
        metadata={"user_id": "u"},
        tools=[WEATHER],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        thinking={"type": "disabled"},
    )
    said = heard(mesh)
    assert said["messages"] == [{"role": "system", "content": "Be brief."}, *HELLO]
    assert {key: said[key] for key in said if key not in ("messages", "tools", "seed", "return_token_ids")} == {
        "model": "m",
        "max_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "stop": ["END"],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }


ERRORS: dict[str, tuple[type[anthropic.APIStatusError], str]] = {
    "nobody": (anthropic.NotFoundError, "not_found_error"),
    "tier:9": (anthropic.NotFoundError, "not_found_error"),
    "m+400": (anthropic.BadRequestError, "invalid_request_error"),
    "m+500": (anthropic.InternalServerError, "api_error"),
    "m+503": (anthropic.InternalServerError, "overloaded_error"),
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("model", ERRORS)
async def test_errors_are_the_clients_own(client: anthropic.AsyncAnthropic, model: str, streamed: bool) -> None:
    wanted, kind = ERRORS[model]
    with pytest.raises(wanted) as caught:
        await client.messages.create(model=model, max_tokens=9, messages=HELLO, stream=streamed)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == kind


async def test_a_wrong_field_is_named(client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        await client.messages.create(model="m", max_tokens=0, messages=HELLO)
    search: Any = {"type": "web_search_20250305", "name": "web_search"}
    with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\].type"):
        await client.messages.create(model="m", max_tokens=9, messages=HELLO, tools=[search])
    with pytest.raises(anthropic.NotFoundError, match="nothing at /v1/messages/count_tokens"):
        await client.messages.count_tokens(model="m", messages=HELLO)


async def test_a_stream_that_breaks_raises(client: anthropic.AsyncAnthropic) -> None:
    async with client.messages.stream(model="m+half", max_tokens=9, messages=HELLO) as stream:
        texts = aiter(stream.text_stream)
        assert await anext(texts) == "one:"
        with pytest.raises(anthropic.APIStatusError, match="broke off"):
            await anext(texts)


async def test_a_client_that_leaves_stops_the_work(mesh: StillMesh, client: anthropic.AsyncAnthropic) -> None:
    async with client.messages.stream(model="m+stall", max_tokens=9, messages=HELLO) as stream:
        assert await anext(aiter(stream.text_stream)) == "one:"
    fake = mesh.nodes["one"].fake
    assert fake is not None
    await fake.wait_until("abandoned")


async def test_the_meshs_token_is_its_api_key() -> None:
    async with still_mesh({"one": 1}, {"one": ("m",)}, token="s3cret-token") as mesh:
        url = mesh.nodes["one"].url
        async with anthropic.AsyncAnthropic(base_url=url, api_key="s3cret-token", max_retries=0) as client:
            await client.messages.create(model="m", max_tokens=9, messages=HELLO)
        async with anthropic.AsyncAnthropic(base_url=url, api_key="wrong", max_retries=0) as client:
            with pytest.raises(anthropic.AuthenticationError, match="the token is wrong"):
                await client.messages.create(model="m", max_tokens=9, messages=HELLO)
