"""Servers are found on their usual ports, by what they say and not by the port alone."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from aiohttp import web
from tests.adapters.test_openai_server import cards, pages
from tests.openai_fake import FakeOpenAI

from tiermesh.adapters.engines.detect import USUAL_PORTS, Detector


async def detected(places: dict[str, str], count: int, known: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    enough = asyncio.Event()

    async def on_found(kind: str, url: str) -> None:
        found.append((kind, url))
        if len(found) >= count:
            enough.set()

    detector = Detector(on_found, known=known, places=places, interval_s=0.01)
    await detector.start()
    try:
        async with asyncio.timeout(5):
            await enough.wait()
    finally:
        await detector.close()
        await detector.close()
    return found


async def test_what_runs_already_is_found_before_start_returns() -> None:
    found = []

    async def on_found(kind: str, url: str) -> None:
        found.append((kind, url))

    async with pages(api_tags={"models": []}) as ollama:
        detector = Detector(on_found, places={"ollama": ollama})
        await detector.start()
        assert found == [("ollama", ollama)]
        await detector.close()


def test_the_usual_ports() -> None:
    assert USUAL_PORTS == {"ollama": 11434, "lmstudio": 1234, "llamacpp": 8080}


async def test_each_kind_is_found_where_it_answers_once() -> None:
    async with AsyncExitStack() as stack:
        ollama = await stack.enter_async_context(pages(api_tags={"models": []}, v1_models=cards()))
        lmstudio = await stack.enter_async_context(pages(api_v0_models={"data": []}, v1_models=cards()))
        llamacpp = await stack.enter_async_context(pages(props={"total_slots": 1}, v1_models=cards()))
        places = {"ollama": ollama, "lmstudio": lmstudio, "llamacpp": llamacpp}
        assert sorted(await detected(places, 3)) == sorted(places.items())


async def test_something_else_on_a_usual_port_is_not_taken_for_it() -> None:
    async with FakeOpenAI("f", "m") as other, pages(api_tags={"models": []}) as ollama:
        places = {"llamacpp": other.url, "lmstudio": ollama, "ollama": ollama}
        assert await detected(places, 1) == [("ollama", ollama)]


async def test_a_server_that_starts_later_is_found_then() -> None:
    fake = FakeOpenAI("f", "m")
    await fake.start()
    port = int(fake.url.rpartition(":")[2])
    await fake.close()
    search = asyncio.create_task(detected({"ollama": f"http://127.0.0.1:{port}"}, 1))
    later = FakeOpenAI("f", "m")

    async def tags(_: web.Request) -> web.Response:
        return web.json_response({"models": []})

    later.app.router.add_get("/api/tags", tags)
    url = await later.start(port=port)
    assert await search == [("ollama", url)]
    await later.close()


async def test_what_is_an_engine_already_is_not_found_again() -> None:
    async with pages(api_tags={"models": []}) as ollama, pages(props={"total_slots": 1}) as llamacpp:
        places = {"ollama": ollama, "llamacpp": llamacpp}
        assert await detected(places, 1, known=(ollama + "/v1/",)) == [("llamacpp", llamacpp)]
