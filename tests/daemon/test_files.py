"""`/v1/files` by its own: a form is taken whole or not at all, nobody holds it open, and an entry is always pinned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from tests.daemon.copying_mesh import digest

from tiermesh.adapters.blobs import Blobs
from tiermesh.adapters.sent_files import SentFile, SentFiles
from tiermesh.daemon.api import openai_tuning
from tiermesh.daemon.api.errors import map_errors
from tiermesh.daemon.api.openai_tuning import register_tuning
from tiermesh.daemon.files import FileDesk
from tiermesh.errors import NotFound, StateUnwritable
from tiermesh.types import NodeId, View

LIMIT_S = 10.0
ROWS = b'{"text": "one"}\n'
BOUNDARY = "x--x"


@dataclass
class Desk:
    """One node's."""

    files: FileDesk
    blobs: Blobs
    entries: SentFiles
    folder: Path
    url: str = ""

    def left(self) -> list[str]:
        """All that is kept, finished or not."""
        there = [*(self.folder / "files").iterdir(), *(self.folder / "data").iterdir()]
        return sorted(path.name for path in there if path.is_file()) + self.blobs.owners()

    async def sent(self, content: bytes = ROWS, name: str = "rows.jsonl") -> SentFile:
        async with self.files.coming(pieces(content)) as staged:
            return await self.files.keep(name, "fine-tune", staged)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def opened(folder: Path) -> Desk:
    blobs, entries = Blobs(folder / "data"), SentFiles(folder / "files")
    blobs.open()
    nothing: Any = None
    files = FileDesk(
        entries,
        blobs,
        me=NodeId("a" * 32),
        peers=nothing,
        view=View,
        wall=lambda: 1.0,
        shared=False,
        fetcher=nothing,
    )
    await files.open()
    return Desk(files, blobs, entries, folder)


@asynccontextmanager
async def serving(desk: Desk) -> AsyncIterator[aiohttp.ClientSession]:
    app = web.Application(middlewares=[map_errors])
    register_tuning(app, cast(Any, None), desk.files)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    desk.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/files"
    try:
        async with aiohttp.ClientSession() as http, asyncio.timeout(LIMIT_S):
            yield http
    finally:
        await runner.cleanup()


@pytest.fixture
async def desk(tmp_path: Path) -> Desk:
    return await opened(tmp_path)


def part(name: str, content: bytes, more: str = "") -> bytes:
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


FILE = part("file", ROWS, '; filename="rows.jsonl"')
PURPOSE = part("purpose", b"fine-tune")
END = f"--{BOUNDARY}--\r\n".encode()


async def post(http: aiohttp.ClientSession, desk: Desk, body: Any) -> tuple[int, Any]:
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    async with http.post(desk.url, data=body, headers=headers) as reply:
        return reply.status, await reply.json()


@pytest.mark.parametrize("form", [FILE + PURPOSE + END, PURPOSE + FILE + END])
async def test_a_form_is_taken_with_its_parts_in_any_order(desk: Desk, form: bytes) -> None:
    async with serving(desk) as http:
        status, told = await post(http, desk, form)
    assert (status, told["filename"], told["bytes"]) == (200, "rows.jsonl", len(ROWS))
    assert desk.left() == [*sorted([f"{told['id']}.json", digest(ROWS)]), told["id"]]


@pytest.mark.parametrize(
    ("rest", "param"),
    [
        (part("purpose", b"assistants"), "purpose"),
        (part("purpose", b""), "purpose"),
        (part("metadata", b"{}"), "metadata"),
        (PURPOSE + part("file", ROWS), "file"),
        (PURPOSE + part("purpose", b"x" * 2000), "purpose"),
        (b"", "purpose"),
    ],
)
async def test_nothing_stays_of_a_form_whose_later_part_is_wrong(desk: Desk, rest: bytes, param: str) -> None:
    async with serving(desk) as http:
        status, told = await post(http, desk, FILE + rest + END)
    assert (status, told["error"]["param"], desk.left()) == (400, param, [])


@pytest.mark.parametrize("begun", [FILE, FILE + b"--x", PURPOSE, part("purpose", b"fine-tu")[:-2], FILE[:-6]])
async def test_who_sends_half_a_form_and_waits_is_gone(
    desk: Desk, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_tuning, "SILENCE_S", 0.1)

    async def half() -> AsyncIterator[bytes]:
        yield begun
        await asyncio.sleep(LIMIT_S)

    async with serving(desk) as http:
        status, told = await post(http, desk, half())
    assert status == 400
    assert "0.1 s" in told["error"]["message"]
    assert desk.left() == []


async def test_an_entry_stays_pinned_when_another_one_who_sends_the_same_fails(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk.files.coming(pieces(ROWS)) as first, desk.files.coming(pieces(ROWS)) as second:
        adopt, may_go_on, begun = desk.blobs.adopt, asyncio.Event(), asyncio.Event()

        async def slow(path: Path) -> tuple[str, int]:
            if path == second.path:
                raise StateUnwritable("the disk is full")
            found = await adopt(path)
            begun.set()
            await may_go_on.wait()
            return found

        monkeypatch.setattr(desk.blobs, "adopt", slow)
        good = asyncio.create_task(desk.files.keep("rows.jsonl", "fine-tune", first))
        await begun.wait()
        bad = asyncio.create_task(desk.files.keep("rows.jsonl", "fine-tune", second))
        await asyncio.wait((bad,), timeout=0.05)
        may_go_on.set()
        entry = await good
        with pytest.raises(StateUnwritable):
            await bad
    assert desk.blobs.pinned(entry.id) == {digest(ROWS)}


async def test_what_is_deleted_while_it_is_sent_again_is_there_and_pinned_or_neither(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = await desk.sent()
    adopt, may_go_on, begun = desk.blobs.adopt, asyncio.Event(), asyncio.Event()

    async def slow(path: Path) -> tuple[str, int]:
        begun.set()
        await may_go_on.wait()
        return await adopt(path)

    monkeypatch.setattr(desk.blobs, "adopt", slow)
    again = asyncio.create_task(desk.sent())
    await begun.wait()
    gone = asyncio.create_task(desk.files.delete(entry.id))
    await asyncio.wait((gone,), timeout=0.05)
    may_go_on.set()
    assert await again == entry
    await gone
    with pytest.raises(NotFound):
        await desk.files.find(entry.id)
    assert (desk.blobs.pinned(entry.id), desk.entries.all()) == (frozenset(), [])


async def test_entries_are_pinned_and_pins_are_of_entries_after_a_restart(desk: Desk, tmp_path: Path) -> None:
    entry, torn = await desk.sent(), "file-" + "0" * 32
    desk.blobs.unpin(entry.id)
    desk.blobs.pin(torn, [digest(b"torn")])
    desk.blobs.pin("JOB", [digest(b"a job's")])
    again = await opened(tmp_path)
    assert again.blobs.owners() == ["JOB", entry.id]
    assert again.blobs.pinned(entry.id) == {entry.sha256}


async def test_what_is_not_kept_goes(desk: Desk) -> None:
    async with desk.files.coming(pieces(ROWS)) as staged:
        assert staged.path.read_bytes() == ROWS
    assert desk.left() == []
