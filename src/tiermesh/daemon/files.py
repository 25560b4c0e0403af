"""Files that were sent under a name (`/v1/files`), as one node knows them.

Each stays on the node that it was sent to. In a mesh with a token every node knows the files of all: it asks the
others when it is asked, and copies the data when it is to be used. Without a token nothing is copied, so a file is
known by the node it was sent to, and by no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from tiermesh.adapters.blobs import Blobs, safe_name
from tiermesh.adapters.fetching import Fetcher, Holder
from tiermesh.adapters.peers import Peers
from tiermesh.adapters.sent_files import SentFile, SentFiles, Staged, is_file_id
from tiermesh.errors import DataUnusable, NotFound, TiermeshError
from tiermesh.protocol.openai_tuning import file_id
from tiermesh.types import Member, NodeId, View

log = logging.getLogger(__name__)

FILES_PATH = "/mesh/v1/files"
"""A node's own door for its files, which never passes a question on."""


class FileDesk:
    """`open` before all else. `shared`: does a token keep strangers out?"""

    def __init__(
        self,
        entries: SentFiles,
        blobs: Blobs,
        *,
        me: NodeId,
        peers: Peers,
        view: Callable[[], View],
        wall: Callable[[], float],
        shared: bool,
        fetcher: Fetcher,
    ) -> None:
        self._entries = entries
        self._blobs = blobs
        self._me = me
        self._peers = peers
        self._view = view
        self._wall = wall
        self._shared = shared
        self._fetcher = fetcher
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def coming(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[Staged]:
        """What comes, on the disk, until it is `keep`t or the context is left. Raises `DataUnusable`, `BodyTooLarge`,
        `StateUnwritable`."""
        staged = await self._entries.stage(chunks)
        try:
            if not staged.size_bytes:
                raise DataUnusable("file: is empty", param="file")
            yield staged
        finally:
            self._entries.discard(staged.path)

    async def keep(self, name: str, purpose: str, staged: Staged) -> SentFile:
        """Under this name; the same one again is the same. Raises `InvalidInput` when there are too many already,
        `BodyTooLarge`, `StateUnwritable`."""
        entry = SentFile(
            id=file_id(purpose, safe_name(name), staged.sha256),  # as the jobs that use it know it
            name=name,
            purpose=purpose,
            sha256=staged.sha256,
            size_bytes=staged.size_bytes,
            created_at=self._wall(),
        )
        async with self._turn(entry.id):
            try:
                self._blobs.pin(entry.id, [entry.sha256])
                await self._blobs.make_room(entry.size_bytes)
                await self._blobs.adopt(staged.path)
                return await asyncio.to_thread(self._entries.add, entry)
            finally:
                if self._entries.find(entry.id) is None:
                    self._blobs.unpin(entry.id)

    async def all(self) -> list[SentFile]:
        """Of every node that answers; the newest first, each once."""
        found = {entry.id: entry for _, entry in await self._elsewhere({})}
        found |= {entry.id: entry for entry in self._entries.all()}
        return sorted(found.values(), key=lambda entry: (entry.created_at, entry.id), reverse=True)

    async def find(self, ident: str) -> SentFile:
        """Raises `NotFound`."""
        return self._entries.find(ident) or (await self._holders(ident))[0][1]

    async def content(self, ident: str) -> tuple[SentFile, Path]:
        """Its data, on this machine from now on. Raises `NotFound`, and what a copy may raise."""
        here = self._entries.find(ident)
        if here is not None and (path := self._blobs.find(here.sha256)) is not None:
            return here, path
        failure: TiermeshError | None = None
        for member, entry in await self._holders(ident):
            try:
                holder = Holder(member.id, member.status.addresses)
                return entry, await self._fetcher.fetch(entry.sha256, [holder], size_bytes=entry.size_bytes)
            except TiermeshError as error:
                log.warning("file %s can't be had from %s: %s", ident, member.status.name, error)
                failure = error
        raise failure or _unknown(ident)

    async def delete(self, ident: str) -> None:
        """Forget it on every node that answers; jobs that use its data keep that. Raises `NotFound`."""
        here = await self._forget(ident)
        there = await self._elsewhere({"delete": ident})
        if here is None and not there:
            raise _unknown(ident)

    async def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What this node alone knows, for another one: `id` for one file, nothing for all, `delete` to forget one."""
        if not self._shared:
            return {"files": []}
        match asked:
            case {"delete": str(ident)}:
                gone = await self._forget(ident)
                found = [] if gone is None else [gone]
            case {"id": str(ident)}:
                one = self._entries.find(ident)
                found = [] if one is None else [one]
            case _:
                found = self._entries.all()
        return {"files": [asdict(entry) for entry in found]}

    async def open(self) -> None:
        """Read what was sent; the store of blobs is open. Pins are of entries, and entries are pinned."""
        await asyncio.to_thread(self._entries.open)
        known = {entry.id: entry for entry in self._entries.all()}
        for owner in self._blobs.owners():
            if is_file_id(owner) and owner not in known:
                self._blobs.unpin(owner)
        for entry in known.values():
            self._blobs.pin(entry.id, [entry.sha256])

    async def _forget(self, ident: str) -> SentFile | None:
        async with self._turn(ident):
            entry = self._entries.remove(ident)
            if entry is not None:
                self._blobs.unpin(ident)
            return entry

    def _turn(self, ident: str) -> asyncio.Lock:
        """Of two who send or forget the same file one comes first: an entry is pinned for as long as there is one."""
        return self._turns.setdefault(ident, asyncio.Lock())

    async def _holders(self, ident: str) -> list[tuple[Member, SentFile]]:
        found = await self._elsewhere({"id": ident})
        if not found:
            raise _unknown(ident)
        return found

    async def _elsewhere(self, question: dict[str, str]) -> list[tuple[Member, SentFile]]:
        """What the others say; whoever doesn't answer is left out."""
        if not self._shared:
            return []
        others = [member for member in self._view().members.values() if member.id != self._me and member.state == "up"]
        told = await asyncio.gather(*(self._ask(member, question) for member in others))
        return [(member, entry) for member, entries in zip(others, told, strict=True) for entry in entries]

    async def _ask(self, member: Member, question: dict[str, str]) -> list[SentFile]:
        try:
            answer = await self._peers.ask(member.id, member.status.addresses, FILES_PATH, question)
            files = answer["files"]
            return [SentFile(**each) for each in files] if isinstance(files, list) else []
        except (TiermeshError, KeyError, TypeError) as error:
            log.debug("node %s does not tell its files: %s", member.status.name, error)
            return []


def _unknown(ident: str) -> NotFound:
    return NotFound(f"no file is called {ident[:60]!r}", param="file")
