"""Every public route, asked anything at all: an answer, or an error that is the caller's."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.daemon.still_mesh import StillMesh, still_mesh
from tests.daemon.test_translate_fuzz import ANY, FIELDS, OBJECT, some
from tests.openai_fake import FakeOpenAI

from tiermesh.config import Flags, PolicyDocument, resolve_options
from tiermesh.daemon.app import Daemon

HELLO = [{"role": "user", "content": "hello"}]
SAMPLING = "temperature tools tool_choice logprobs top_logprobs n"
CHAT: dict[str, object] = {"model": "m", "messages": HELLO}
TRAIN: dict[str, object] = {"spec": {"model_name": "nonesuch"}, "data": {"name": "a.jsonl", "text": "{}"}}

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

READ = (
    "/health",
    "/metrics",
    "/v1/models",
    "/v1/models/{name}",
    "/api/cluster",
    "/api/config",
    "/api/health",
    "/api/metrics",
    "/api/ps",
    "/api/tags",
    "/api/version",
    "/api/jobs",
    "/api/jobs/{name}",
    "/api/jobs/{name}/events",
    "/api/jobs/{name}/logs",
    "/api/jobs/{name}/crash",
    "/api/jobs/{name}/report",
    "/api/jobs/{name}/report.json",
    "/api/jobs/{name}/report.png",
    "/api/jobs/{name}/results",
    "/api/jobs/{name}/results/{name}",
    "/api/data/{name}",
    "/api/models",
    "/api/models/{name}",
    "/api/models/{name}/files/{name}",
    "/v1/files",
    "/v1/files/{name}",
    "/v1/files/{name}/content",
    "/v1/fine_tuning/jobs",
    "/v1/fine_tuning/jobs/{name}",
    "/v1/fine_tuning/jobs/{name}/checkpoints",
    "/v1/fine_tuning/jobs/{name}/events",
)
"""Routes that only tell."""

ORDERS = tuple(f"/api/nodes/{{name}}/{order}" for order in ("drain", "resume", "remove"))
DECISIONS = tuple(f"/api/jobs/{{name}}/{decision}" for decision in ("approve", "cancel", "optimize", "retry"))
TUNING = tuple(f"/v1/fine_tuning/jobs/{{name}}/{decision}" for decision in ("cancel", "resume"))
ACTS = (*ORDERS, *DECISIONS, *TUNING, "/api/cluster/test", "/api/models/{name}/pin")
"""Routes that do something, and whose body says nothing."""

TAKE = ("/api/config", "/api/train", "/v1/files", "/v1/fine_tuning/jobs")
"""Routes that take something in."""

LIMIT_S = 10.0
QUIET = [HealthCheck.function_scoped_fixture]

SECTIONS = {name: list(type(field.default).model_fields) for name, field in PolicyDocument.model_fields.items()}
POLICY = some(**{name: some(**dict.fromkeys(fields, ANY)) for name, fields in SECTIONS.items()})
NAME = st.sampled_from(["one", "m", "m:latest", "auto", "tier:1"]) | st.text(min_size=1, max_size=9)
LINE = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=20)

PIECES_OF_A_FORM = (
    b"--b\r\n",
    b'Content-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n',
    b'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}\r\n',
    b'Content-Disposition: form-data; name="x"\r\n',
    b"Content-Type: multipart/mixed; boundary=c\r\n",
    b"Content-Transfer-Encoding: base64\r\n",
    b"Content-Length: 99\r\n",
    b"\r\n",
    b"--b--\r\n",
)


@pytest.fixture
async def mesh() -> AsyncIterator[StillMesh]:
    async with still_mesh({"one": 1}, {"one": ("m",)}) as mesh:
        yield mesh


@pytest.mark.parametrize("path", ROUTES)
@settings(max_examples=50, deadline=None, suppress_health_check=QUIET)
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


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a whole daemon, which has all of the routes."""
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(FakeOpenAI("one", "m"))
        (tmp_path / "cluster.yaml").write_text("grace_s: 1\n")
        flags = Flags(
            name="one",
            cluster=f"test-{secrets.token_hex(4)}",
            state_dir=tmp_path / "one",
            port=0,
            interface="127.0.0.1",
            no_detect=True,
            engines=(fake.url,),
            config=tmp_path / "cluster.yaml",
        )
        daemon = Daemon(resolve_options(flags, env={}))
        stack.push_async_callback(daemon.close)
        await daemon.start()
        url: str = json.loads((tmp_path / "one" / "runtime.json").read_text())["url"]
        ended = asyncio.create_task(daemon.run())
        http = await stack.enter_async_context(aiohttp.ClientSession(url))
        async with asyncio.timeout(LIMIT_S):
            while not await _is_ready(http):
                await asyncio.sleep(0.01)
        yield url
        daemon.stop()
        daemon.stop()
        await ended


async def _is_ready(http: aiohttp.ClientSession) -> bool:
    view = json.loads((await _asked(http, "GET", "/api/cluster"))[1])
    return bool(view["coordinator"] and view["nodes"][0]["models"])


async def _asked(http: aiohttp.ClientSession, method: str, path: str, **more: object) -> tuple[int, bytes]:
    """Status and body; neither a 5xx nor a hang."""
    async with asyncio.timeout(LIMIT_S), http.request(method, path, **more) as reply:  # type: ignore[arg-type]
        said = await reply.read()
    assert reply.status < 500, (method, path, said)
    if reply.status != 200 and method != "HEAD":
        assert json.loads(said)["error"]
    return reply.status, said


async def test_no_public_route_is_forgotten_here(daemon: str) -> None:
    async with aiohttp.ClientSession(daemon) as http:
        _, said = await _asked(http, "GET", "/no-such-route")
    named = re.sub(r"{\w+}", "{name}", json.loads(said)["error"]["message"].partition("there are:")[2])
    there = set(re.findall(r"(GET|POST|PUT) (/[^,]*)", named))
    told = {("GET", path) for path in READ} | {("PUT", "/api/data/{name}")}
    assert there == told | {("POST", path) for path in (*ROUTES, *ACTS, *TAKE)}


@settings(max_examples=300, deadline=None, suppress_health_check=QUIET)
@given(
    path=st.sampled_from(READ),
    method=st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]),
    name=NAME,
    query=st.dictionaries(st.sampled_from(["history", "x"]), LINE, max_size=2),
    body=st.none() | ANY,
)
async def test_whatever_is_read(
    daemon: str, path: str, method: str, name: str, query: dict[str, str], body: object
) -> None:
    async with aiohttp.ClientSession(daemon) as http:
        await _asked(http, method, path.format(name=quote(name, safe="")), params=query, json=body)


@settings(max_examples=150, deadline=None, suppress_health_check=QUIET)
@given(body=POLICY | OBJECT | ANY)
async def test_whatever_the_policy_is_to_be(daemon: str, body: object) -> None:
    async with aiohttp.ClientSession(daemon) as http:
        status, _ = await _asked(http, "POST", "/api/config", json=body)
        assert status in (200, 400, 415)
        assert (await _asked(http, "GET", "/api/config"))[0] == 200
        assert (await _asked(http, "POST", "/api/config", json={}))[0] == 200, "it can be taken back"


@settings(max_examples=150, deadline=None, suppress_health_check=QUIET)
@given(body=some(id=LINE, name=LINE, spec=OBJECT, data=OBJECT, eval_data=OBJECT).map(lambda some: TRAIN | some) | ANY)
async def test_whatever_is_to_be_learnt(daemon: str, body: object) -> None:
    async with aiohttp.ClientSession(daemon) as http:
        assert (await _asked(http, "POST", "/api/train", json=body))[0] in (400, 409, 415)


@settings(max_examples=100, deadline=None, suppress_health_check=QUIET)
@given(
    body=some(
        model=NAME, training_file=NAME, validation_file=NAME, suffix=LINE, seed=ANY, method=OBJECT, metadata=OBJECT
    )
    | ANY
)
async def test_whatever_is_to_be_tuned(daemon: str, body: object) -> None:
    async with aiohttp.ClientSession(daemon) as http:
        assert (await _asked(http, "POST", "/v1/fine_tuning/jobs", json=body))[0] in (400, 415)


@settings(max_examples=100, deadline=None, suppress_health_check=QUIET)
@given(
    body=st.binary(max_size=60) | st.lists(st.sampled_from(PIECES_OF_A_FORM), max_size=12).map(b"".join),
    content_type=st.sampled_from(["multipart/form-data; boundary=b", "multipart/form-data", "multipart/mixed"]),
)
async def test_whatever_form_a_file_comes_in(daemon: str, body: bytes, content_type: str) -> None:
    async with aiohttp.ClientSession(daemon) as http:
        head = {"Content-Type": content_type}
        assert (await _asked(http, "POST", "/v1/files", data=body, headers=head))[0] in (200, 400, 415)


@settings(max_examples=100, deadline=None, suppress_health_check=QUIET)
@given(name=NAME | st.text("0123456789abcdef", min_size=64, max_size=64), body=st.binary(max_size=50))
async def test_whatever_is_sent_as_data(daemon: str, name: str, body: bytes) -> None:
    head = {"Content-Type": "application/octet-stream"}
    async with aiohttp.ClientSession(daemon) as http:
        status, _ = await _asked(http, "PUT", f"/api/data/{quote(name, safe='')}", data=body, headers=head)
        assert status in (400, 404, 422)


@settings(max_examples=150, deadline=None, suppress_health_check=QUIET)
@given(path=st.sampled_from(ACTS), name=NAME, body=OBJECT | ANY)
async def test_whoever_is_given_orders(daemon: str, path: str, name: str, body: object) -> None:
    async with aiohttp.ClientSession(daemon) as http:
        await _asked(http, "POST", path.format(name=quote(name, safe="")), json=body)
        assert (await _asked(http, "GET", "/health"))[0] == 200


@settings(max_examples=100, deadline=None, suppress_health_check=QUIET)
@given(
    headers=st.dictionaries(
        st.sampled_from(["X-Request-Id", "X-Mesh-Priority", "Authorization", "X-Api-Key", "Origin", "X-Mesh-Deadline"]),
        LINE,
        max_size=4,
    ),
    content_type=st.sampled_from(["application/json", "application/json; charset=utf-16", "text/plain", "x", ";;"]),
    body=st.binary(max_size=30) | st.just(json.dumps(CHAT).encode()),
)
async def test_whatever_the_head_says(mesh: StillMesh, headers: dict[str, str], content_type: str, body: bytes) -> None:
    head = {**headers, "Content-Type": content_type}
    url = mesh.nodes["one"].url + "/v1/chat/completions"
    status, _ = await _asked(mesh.http, "POST", url, data=body, headers=head)
    assert status in (200, 400, 403, 415)
