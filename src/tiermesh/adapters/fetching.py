"""Files from other nodes, by their content: one holder after the other, each going on where the last one ended.

Nothing is believed: a file is what its digest says or is thrown away, and a list of files is judged before a byte of
them is asked for. Time is bounded by progress and not by size: a slow link may take hours for a large file, a holder
that gives next to nothing is left.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

import aiohttp

from tiermesh.adapters.blobs import Blobs
from tiermesh.adapters.reasons import reason_of
from tiermesh.errors import BodyTooLarge, DataUnusable, EngineFailed, StateUnwritable, TiermeshError, Unavailable
from tiermesh.protocol.artifacts import BLOBS_PATH, MAX_MANIFEST_BYTES, Manifest
from tiermesh.types import Address, NodeId

PROGRESS_BYTES, PROGRESS_S = 64 << 10, 10.0
"""A holder that gives less than this in such a time is left for the next one: 6 KB/s are a link that can't be used."""
ROUNDS = 2
"""How often all holders are tried: what one spoiled, another begins anew."""
PAUSE_S = 0.5
"""Between rounds: a link that was away for a moment."""
AGAIN_S = 5.0
"""Told to who asks when nobody could give it."""
_EXTENT = re.compile(r"bytes (\d+)-\d+/(\d+)")


@dataclass(frozen=True, slots=True)
class Holder:
    """A node that may have it, and where it is to be found."""

    node: NodeId
    addresses: tuple[Address, ...]


class Source(Protocol):
    """What is needed of `Peers`."""

    def read(
        self, node: NodeId, addresses: tuple[Address, ...], path: str, *, offset: int = 0
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]: ...


class Fetcher:
    """Brings files and artifacts into this node's `Blobs`. The same one is fetched once, whoever asks for it.

    All methods raise `Unavailable` when no holder could give it (later one may), `DataUnusable` for what is not as it
    should be, `BodyTooLarge` when there is no room here, and `StateUnwritable`.
    """

    def __init__(self, blobs: Blobs, source: Source) -> None:
        self.blobs = blobs
        self._source = source
        self._alone: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def fetch(
        self, sha256: str, holders: Iterable[Holder], *, size_bytes: int | None = None, most_bytes: int | None = None
    ) -> Path:
        """One file. `size_bytes` is what it must have; where that is not known, `most_bytes` bounds it."""
        lock = self._alone.setdefault(sha256, asyncio.Lock())
        async with lock:
            if (path := await self.blobs.sound(sha256)) is not None:
                return path
            if size_bytes == 0:
                return await self._take(sha256, _nothing(), 0, 0)
            reasons: dict[NodeId, str] = {}
            holders = tuple(holders)
            for number, holder in enumerate(holders * ROUNDS):
                if number and number % len(holders) == 0:
                    await asyncio.sleep(PAUSE_S)
                try:
                    return await self._from(holder, sha256, size_bytes, most_bytes)
                except (BodyTooLarge, StateUnwritable):
                    raise
                except TiermeshError as error:
                    reasons[holder.node] = str(error)
        told = "; ".join(f"node {node[:8]}: {reason}" for node, reason in reasons.items())
        raise Unavailable(f"no node gives {sha256[:12]}…: {told or 'nobody has it'}", retry_after_s=AGAIN_S)

    async def artifact(self, artifact: str, holders: Iterable[Holder], *, owner: str) -> Manifest:
        """All of an artifact; pinned for `owner` from the first byte on, also when this fails."""
        holders = tuple(holders)
        self.blobs.pin(owner, [artifact])
        path = await self.fetch(artifact, holders, most_bytes=MAX_MANIFEST_BYTES)
        manifest = Manifest.read(await asyncio.to_thread(path.read_bytes))
        self.blobs.pin(owner, [file.sha256 for file in manifest.files])
        missing = {f.sha256: f.size_bytes for f in manifest.files if not await self._has(f.sha256, f.size_bytes)}
        await self.blobs.make_room(sum(missing.values()) - sum(map(self.blobs.received, missing)))
        for sha256, size in missing.items():
            await self.fetch(sha256, holders, size_bytes=size)
        return manifest

    async def folder(self, artifact: str, holders: Iterable[Holder], target: Path, *, owner: str) -> Manifest:
        """An artifact as a folder, whole or not there at all. Its files are links: never write into them."""
        manifest = await self.artifact(artifact, holders, owner=owner)
        try:
            await asyncio.to_thread(lay_out, self.blobs, manifest, target)
        except OSError as error:
            raise StateUnwritable(f"{target} can't be written: {error.strerror or error}") from error
        return manifest

    async def _has(self, sha256: str, size_bytes: int) -> bool:
        path = await self.blobs.sound(sha256)
        if path is not None and path.stat().st_size != size_bytes:
            raise DataUnusable(f"the manifest says that {sha256[:12]}… has {size_bytes:,} bytes, which it has not")
        return path is not None

    async def _from(self, holder: Holder, sha256: str, size_bytes: int | None, most_bytes: int | None) -> Path:
        """From one holder, for as long as it gets on."""
        while True:
            before = self.blobs.received(sha256)
            try:
                return await self._piece(holder, sha256, size_bytes, most_bytes)
            except EngineFailed:
                if self.blobs.received(sha256) < before + PROGRESS_BYTES:
                    raise

    async def _piece(self, holder: Holder, sha256: str, size_bytes: int | None, most_bytes: int | None) -> Path:
        offset = self.blobs.received(sha256)
        if size_bytes is not None and offset >= size_bytes:  # what is here can't be the file
            self.blobs.drop_part(sha256)
            offset = 0
        path = f"{BLOBS_PATH}{sha256}"
        async with self._source.read(holder.node, holder.addresses, path, offset=offset) as response:
            first, total = _extent(response)
            if first != offset:
                raise DataUnusable(f"it gives what begins at {first:,} instead of {offset:,}")
            if total != (total if size_bytes is None else size_bytes):
                raise DataUnusable(f"it has {total:,} bytes, not {size_bytes:,}")
            if most_bytes is not None and total > most_bytes:
                raise DataUnusable(f"it has {total:,} bytes, more than the {most_bytes:,} that it may have")
            return await self._take(sha256, steady(response.content), offset, total)

    async def _take(self, sha256: str, chunks: AsyncIterator[bytes], offset: int, total_bytes: int) -> Path:
        path = await self.blobs.put_part(sha256, chunks, offset=offset, total_bytes=total_bytes)
        if path is None:
            raise EngineFailed("it broke off")
        return path


def lay_out(blobs: Blobs, manifest: Manifest, target: Path) -> None:
    """All files of an artifact that is here whole, as a folder; nothing when it is there. Blocks."""
    if target.exists():
        return
    staged = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        for file in manifest.files:
            blobs.lay(file.sha256, staged / file.name)
        staged.rename(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _extent(response: aiohttp.ClientResponse) -> tuple[int, int]:
    """The first byte that comes, and how many the whole file has. Raises `DataUnusable`."""
    if response.status == 200 and response.content_length is not None:
        return 0, response.content_length
    found = _EXTENT.fullmatch(response.headers.get("Content-Range", ""))
    if found is None:
        raise DataUnusable("it does not say how much it gives")
    return int(found[1]), int(found[2])


async def steady(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """What comes, for as long as enough of it does. Raises `EngineFailed`."""
    loop = asyncio.get_running_loop()
    came, until = 0, loop.time() + PROGRESS_S
    try:
        while True:
            async with asyncio.timeout_at(until):
                chunk = await content.readany()
            if not chunk:
                return
            given_at = loop.time()
            yield chunk
            until += loop.time() - given_at  # this node's own disk is no fault of the holder
            came += len(chunk)
            if came >= PROGRESS_BYTES:
                came, until = 0, loop.time() + PROGRESS_S
    except TimeoutError:
        raise EngineFailed(f"it gave less than {PROGRESS_BYTES:,} bytes in {PROGRESS_S:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
        raise EngineFailed(f"it broke off: {reason_of(error)}") from error


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
