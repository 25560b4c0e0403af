"""A node dies in the middle of a stream, and no client of any dialect notices."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anthropic
import ollama
import openai
import pytest
from tests.daemon.scripted_kernel import LENGTH, ScriptedKernel, kernel_mesh, text_of

HELLO = "are you there"


@pytest.fixture
async def broken() -> AsyncIterator[tuple[str, dict[str, ScriptedKernel]]]:
    """A door's URL, and two kernels that break off before an answer's sixth token, each once."""
    async with kernel_mesh({"one": "d", "two": "d"}) as (mesh, kernels):
        for kernel in kernels.values():
            kernel.script.break_at = 5
        yield mesh.nodes["desk"].url, kernels


def undisturbed(kernels: dict[str, ScriptedKernel]) -> str:
    """What one node alone would have said to the request that both got."""
    bodies = [kernel.requests[-1] for kernel in kernels.values()]
    assert bodies[0]["seed"] == bodies[1]["seed"]
    assert any(body.get("resume_token_ids") for body in bodies)
    return text_of(bodies[0])


async def test_anthropics(broken: tuple[str, dict[str, ScriptedKernel]]) -> None:
    url, kernels = broken
    async with (
        anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as client,
        client.messages.stream(model="m", max_tokens=99, messages=[{"role": "user", "content": HELLO}]) as stream,
    ):
        message = await stream.get_final_message()
    (block,) = message.content
    assert block.to_dict()["text"] == undisturbed(kernels)
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", LENGTH)


async def test_ollamas(broken: tuple[str, dict[str, ScriptedKernel]]) -> None:
    url, kernels = broken
    client = ollama.AsyncClient(host=url)
    parts = [part async for part in await client.chat("m", [{"role": "user", "content": HELLO}], stream=True)]
    await client._client.aclose()
    assert "".join(part.message.content or "" for part in parts) == undisturbed(kernels)
    assert (parts[-1].done_reason, parts[-1].eval_count) == ("stop", LENGTH)


async def test_openais(broken: tuple[str, dict[str, ScriptedKernel]]) -> None:
    url, kernels = broken
    async with (
        openai.AsyncOpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as client,
        client.responses.stream(model="m", input=HELLO) as stream,
    ):
        response = await stream.get_final_response()
    assert response.output_text == undisturbed(kernels)
    assert response.usage is not None
    assert response.usage.output_tokens == LENGTH
