"""Every public route that takes a body, asked anything at all: an answer, or an error that is the caller's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.daemon.still_mesh import StillMesh, still_mesh
from tests.daemon.test_translate_fuzz import ANY, FIELDS, OBJECT, some

HELLO = [{"role": "user", "content": "hello"}]
SAMPLING = "temperature tools tool_choice logprobs top_logprobs n"
CHAT: dict[str, object] = {"model": "m", "messages": HELLO}

ROUTES: dict[str, tuple[dict[str, object], str]] = {
    "/v1/chat/completions": (CHAT, f"messages {SAMPLING}"),
    "/v1/completions": ({"model": "m", "prompt": "a"}, "prompt temperature logprobs n"),
    "/v1/responses": ({"model": "m", "input": "a"}, "input text temperature tools tool_choice top_logprobs"),
    "/v1/embeddings": ({"model": "m", "input": "a"}, "input"),
    "/v1/messages": ({**CHAT, "max_tokens": 9}, "messages system temperature tools tool_choice stop_sequences"),
    "/api/chat": (CHAT, "messages tools options format logprobs"),
    "/api/generate": ({"model": "m", "prompt": "a"}, "prompt system options format"),
    "/api/embed": ({"model": "m", "input": "a"}, "input"),
    "/api/show": ({"model": "m"}, "format"),
    "/api/complete": ({"messages": HELLO}, "messages temperature tools tool_choice"),
    "/api/route": ({"messages": HELLO}, "messages temperature"),
}
"""By path: a request that is answered, and the fields that something else is put into."""


@pytest.fixture
async def mesh() -> AsyncIterator[StillMesh]:
    async with still_mesh({"one": 1}, {"one": ("m",)}) as mesh:
        yield mesh


@pytest.mark.parametrize("path", ROUTES)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_no_body_is_too_strange(mesh: StillMesh, path: str, data: st.DataObject) -> None:
    answered, named = ROUTES[path]
    some_of = some(**{name: FIELDS[name] for name in named.split()}, stream=st.booleans())
    body = data.draw(some_of.map(lambda fields: answered | fields) | OBJECT.map(lambda fields: answered | fields) | ANY)
    async with asyncio.timeout(10), mesh.http.post(mesh.nodes["one"].url + path, json=body) as reply:
        said = await reply.read()
    assert reply.status < 500, said
    if reply.status != 200:
        assert json.loads(said)
