"""Ollama's own Python client against a node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import ollama
import pytest
from tests.daemon.still_mesh import StillMesh, still_mesh

from tiermesh.adapters.engines.server_kinds import Server, is_kind

HELLO = [{"role": "user", "content": "hello there"}]
MODELS = ("m", "m+tool", "m+half", "m+400", "m+500", "m+503", "big:7b")
PNG = "iVBORw0KGgoAAAANSUhEUg=="


def weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: where
    """
    return f"22 degrees in {city}"


@pytest.fixture
async def mesh() -> AsyncIterator[StillMesh]:
    async with still_mesh({"desk": None, "one": 1}, {"one": MODELS}) as mesh:
        mesh.set_policy({"limits": {"queue_timeout_s": 0.1}})  # a busy engine stays busy here
        yield mesh


@pytest.fixture
async def client(mesh: StillMesh) -> AsyncIterator[ollama.AsyncClient]:
    client = ollama.AsyncClient(host=mesh.nodes["desk"].url)
    yield client
    await client._client.aclose()


def heard(mesh: StillMesh) -> dict[str, Any]:
    """The last request that the engine got."""
    fake = mesh.nodes["one"].fake
    assert fake is not None
    return fake.requests[-1]


async def test_a_chat_is_answered(client: ollama.AsyncClient) -> None:
    answer = await client.chat("m", HELLO)
    assert (answer.message.content, answer.done, answer.done_reason) == ("one: hello there", True, "stop")
    assert (answer.model, answer.prompt_eval_count, answer.eval_count) == ("m", 2, 3)
    assert answer.created_at == "2027-01-15T08:00:00Z"
    assert answer.total_duration


async def test_a_streamed_chat_ends_with_the_counts(client: ollama.AsyncClient) -> None:
    parts = [part async for part in await client.chat("m", HELLO, stream=True)]
    assert [part.message.content for part in parts] == ["one:", " hello", " there", ""]
    assert [part.done for part in parts] == [False, False, False, True]
    assert (parts[-1].done_reason, parts[-1].prompt_eval_count, parts[-1].eval_count) == ("stop", 2, 3)


async def test_a_prompt_is_answered(mesh: StillMesh, client: ollama.AsyncClient) -> None:
    answer = await client.generate("m", "hello", system="Be brief.")
    assert (answer.response, answer.done) == ("one: hello", True)
    assert heard(mesh)["messages"][0] == {"role": "system", "content": "Be brief."}
    parts = [part async for part in await client.generate("m", "hello", stream=True)]
    assert [part.response for part in parts] == ["one:", " hello", ""]


@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_are_called_and_their_results_taken(
    mesh: StillMesh, client: ollama.AsyncClient, streamed: bool
) -> None:
    if streamed:
        parts = [part async for part in await client.chat("m+tool", HELLO, tools=[weather], stream=True)]
        assert [part.done for part in parts] == [False, True]
        message = parts[0].message
    else:
        message = (await client.chat("m+tool", HELLO, tools=[weather])).message
    (call,) = message.tool_calls or ()
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Paris"})
    assert heard(mesh)["tools"][0]["function"]["parameters"]["required"] == ["city"]
    result = {"role": "tool", "content": weather(**call.function.arguments), "tool_name": "weather"}
    answer = await client.chat("m", [*HELLO, message, result], tools=[weather])
    assert answer.message.content == "one: 22 degrees in Paris"
    assistant, tool = heard(mesh)["messages"][1:]
    assert assistant["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
    assert assistant["tool_calls"][0]["id"] == tool["tool_call_id"]


async def test_settings_arrive(mesh: StillMesh, client: ollama.AsyncClient) -> None:
    options = {"temperature": 0.5, "top_k": 40, "num_predict": 2, "stop": ["END"], "seed": 7, "repeat_penalty": 1.1}
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    loading = {"num_ctx": 8192, "num_gpu": 1, "mirostat": 0}
    image = {"role": "user", "content": "look", "images": [PNG]}
    answer = await client.chat("m", [image], format=schema, options=options | loading, keep_alive="5m")
    assert answer.message.content == "one: look"
    said = heard(mesh)
    assert said["messages"][0]["content"][1]["image_url"]["url"] == f"data:image/png;base64,{PNG}"
    assert said["response_format"]["json_schema"]["schema"] == schema
    named = ("temperature", "top_k", "max_tokens", "stop", "seed", "repetition_penalty")
    assert [said[name] for name in named] == [0.5, 40, 2, ["END"], 7, 1.1]
    assert not set(loading) & set(said)
    await client.chat("m", HELLO, format="json", options={"num_predict": -1})
    assert heard(mesh)["response_format"] == {"type": "json_object"}
    assert "max_tokens" not in heard(mesh)


@pytest.mark.parametrize(
    ("model", "status"), [("nobody", 404), ("tier:9", 404), ("m+400", 400), ("m+500", 502), ("m+503", 503)]
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_errors_are_the_clients_own(client: ollama.AsyncClient, model: str, status: int, streamed: bool) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        await (streamed_chat(client, model) if streamed else client.chat(model, HELLO))
    assert caught.value.status_code == status


async def streamed_chat(client: ollama.AsyncClient, model: str) -> list[str | None]:
    return [part.message.content async for part in await client.chat(model, HELLO, stream=True)]


async def test_what_cannot_be_had_is_refused_by_name(client: ollama.AsyncClient) -> None:
    with pytest.raises(ollama.ResponseError, match=r"options\.mirostat: is not supported"):
        await client.chat("m", HELLO, options={"mirostat": 2})
    with pytest.raises(ollama.ResponseError, match="raw: is not supported"):
        await client.generate("m", "x", raw=True)
    with pytest.raises(ollama.ResponseError, match=r"messages\[0\]: a tool's result without a call"):
        await client.chat("m", [{"role": "tool", "content": "22"}])
    with pytest.raises(ollama.ResponseError, match=r"input: must not be empty"):
        await client.embed("m", "")


async def test_a_stream_that_breaks_raises(client: ollama.AsyncClient) -> None:
    parts = aiter(await client.chat("m+half", HELLO, stream=True))
    assert (await anext(parts)).message.content == "one:"
    with pytest.raises(ollama.ResponseError, match="broke off"):
        await anext(parts)


async def test_models_are_listed_under_their_full_names(mesh: StillMesh, client: ollama.AsyncClient) -> None:
    listed = (await client.list()).models
    assert [model.model for model in listed][:4] == ["auto:latest", "tier:1", "big:7b", "m:latest"]
    answer = await client.chat(listed[1].model or "", HELLO)
    assert answer.model == "m"
    assert len((await client.ps()).models) == len(listed) - 2, "what is chosen for each request is in no memory"
    shown = await client.show("m:latest")
    assert shown.capabilities == ["completion", "tools"]
    with pytest.raises(ollama.ResponseError, match="no node has 'nobody'"):
        await client.show("nobody")
    mesh.mark("one", "down")
    assert (await client.list()).models == []


async def test_embeddings_come_in_the_order_of_their_texts(client: ollama.AsyncClient) -> None:
    answer = await client.embed("m", ["four", "sixsix"])
    assert [row[0] for row in answer.embeddings] == [4.0, 6.0]
    assert len((await client.embed("m", "four")).embeddings) == 1


async def test_nothing_asked_is_a_hint_to_load(client: ollama.AsyncClient, mesh: StillMesh) -> None:
    assert (await client.generate("m")).done_reason == "load"
    assert (await client.chat("m", keep_alive=0)).done_reason == "unload"
    fake = mesh.nodes["one"].fake
    assert fake is not None
    assert not fake.requests


async def test_a_version_is_told_and_the_mesh_is_no_engine_of_its_own(mesh: StillMesh) -> None:
    status, body, headers = await mesh.get("desk", "/api/version")
    assert (status, headers["X-Mesh-Node"]) == (200, "desk")
    assert body["version"].count(".") == 2
    assert not await is_kind(Server(mesh.http, mesh.nodes["desk"].url), "ollama")
