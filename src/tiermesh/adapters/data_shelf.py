"""Datasets that were sent to this node, each a file that is named by its content.

    <folder>/<sha256>       whole and verified
    <folder>/.coming-*      an upload on its way; what a dead daemon left is removed at the next start

A run links the file into its own folder, under the name that tells its format: what the shelf forgets, runs keep.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from tiermesh.errors import BodyTooLarge, DataUnusable, StateUnwritable

P = ParamSpec("P")
T = TypeVar("T")

CAP_BYTES = 64 << 30
"""All datasets together; those that came or were used longest ago make room."""
FREE_RESERVE_BYTES = 1 << 30
"""Left free on the disk, for checkpoints and for everybody else."""
BLOCK_BYTES = 1 << 20
"""Written and hashed at once, in a thread."""
STAGED = ".coming-"
NAME_LIMIT = 80
"""Bytes of a dataset's own name that a run keeps."""


class DataShelf:
    """One folder of one node. Made once; `open` before all else."""

    def __init__(self, folder: Path, *, cap_bytes: int = CAP_BYTES) -> None:
        self._folder = folder
        self._cap_bytes = cap_bytes

    def open(self) -> None:
        """Remove what an earlier daemon did not finish."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self._folder.glob(f"{STAGED}*"):
            path.unlink(missing_ok=True)

    def find(self, sha256: str) -> Path | None:
        """The dataset of this digest, if it is here."""
        path = self._folder / sha256
        return path if path.is_file() else None

    async def put(self, sha256: str, chunks: AsyncIterator[bytes], declared_bytes: int | None) -> Path:
        """Take a dataset in; it appears whole, or not at all.

        Raises `BodyTooLarge` when there is no room for it, `DataUnusable` when it is not what its digest says, and
        `StateUnwritable`.
        """
        self._make_room(declared_bytes or 0)
        staged = self._folder / f"{STAGED}{secrets.token_hex(8)}"
        took = await self._on_disk(_Intake, staged)
        try:
            async for block in _blocks(chunks):
                self._check_room(took.size_bytes + len(block))
                await self._on_disk(took.write, block)
            if not took.size_bytes:
                raise DataUnusable("the data is empty", param="data")
            if (found := await self._on_disk(took.finish)) != sha256:
                raise DataUnusable(
                    f"the data that came has SHA-256 {found}, not {sha256}: it was changed or cut off on its way; "
                    "send it again",
                    param="data",
                )
            await self._on_disk(took.publish, self._folder / sha256)
        finally:
            took.discard()
        self._make_room(0)
        return self._folder / sha256

    async def put_whole(self, content: bytes) -> str:
        """Take in what is in memory already; gives its digest."""
        sha256 = hashlib.sha256(content).hexdigest()
        if self.find(sha256) is None:
            await self.put(sha256, _once(content), len(content))
        return sha256

    def link(self, sha256: str, name: str, folder: Path) -> Path | None:
        """Give the run in `folder` its dataset, under a safe form of `name`; None when the shelf has no such data."""
        target = folder / safe_name(name)
        if target.is_file():
            return target
        source = self.find(sha256)
        if source is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(source)
        try:
            os.link(source, target)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, target)
        return target

    async def _on_disk(self, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        try:
            return await asyncio.to_thread(work, *args, **named)
        except OSError as error:
            reason = error.strerror or error
            raise StateUnwritable(f"{self._folder} can't be written: {reason}. Free or repair the disk") from error

    def _check_room(self, size_bytes: int) -> None:
        if size_bytes > self._cap_bytes:
            raise BodyTooLarge(f"the data is larger than the {self._cap_bytes:,} bytes that this node keeps")
        if shutil.disk_usage(self._folder).free < FREE_RESERVE_BYTES:
            raise BodyTooLarge(f"this node's disk is full: {FREE_RESERVE_BYTES:,} bytes must stay free")

    def _make_room(self, wanted_bytes: int) -> None:
        """For data of that size, by forgetting the oldest."""
        if wanted_bytes > self._cap_bytes:
            raise BodyTooLarge(f"{wanted_bytes:,} bytes are more than the {self._cap_bytes:,} that this node keeps")
        free = shutil.disk_usage(self._folder).free - FREE_RESERVE_BYTES
        if wanted_bytes > free:
            raise BodyTooLarge(
                f"{wanted_bytes:,} bytes don't fit on this node's disk, which has {max(0, free):,} to spare"
            )
        kept = sorted(self._whole(), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in kept)
        while kept and total + wanted_bytes > self._cap_bytes:
            oldest = kept.pop(0)
            total -= oldest.stat().st_size
            oldest.unlink(missing_ok=True)

    def _whole(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if not path.name.startswith(STAGED)]


def safe_name(name: str) -> str:
    """The last part of a path, of either kind, as a file name that can do no harm."""
    last = re.split(r"[/\\]", name)[-1]
    plain = re.sub(r"[^\w.-]", "_", last).lstrip(".-")
    return plain.encode()[-NAME_LIMIT:].decode(errors="ignore") or "data"


class _Intake:
    """A file being written and hashed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = hashlib.sha256()
        self._file = path.open("xb", buffering=0)
        self.size_bytes = 0

    def write(self, block: bytes) -> None:
        self._hash.update(block)
        self.size_bytes += len(block)
        view = memoryview(block)
        while view:
            view = view[self._file.write(view) :]

    def finish(self) -> str:
        """On the disk; gives its digest."""
        os.fsync(self._file.fileno())
        return self._hash.hexdigest()

    def publish(self, final: Path) -> None:
        self._path.replace(final)
        directory = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def discard(self) -> None:
        self._file.close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


async def _blocks(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in larger pieces."""
    kept = bytearray()
    async for chunk in chunks:
        kept += chunk
        if len(kept) >= BLOCK_BYTES:
            yield bytes(kept)
            kept.clear()
    if kept:
        yield bytes(kept)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
