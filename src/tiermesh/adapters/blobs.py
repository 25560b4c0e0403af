"""What this node keeps by its content: datasets, checkpoints, results; each file is named by its SHA-256.

    <folder>/<sha256>         whole and verified
    <folder>/.part-<sha256>   on its way in pieces; goes on where it ended, also after a restart of the daemon
    <folder>/.coming-*        on its way at once; what a dead daemon left is removed at the next start
    <folder>/.pins/<owner>    the digests that stay while their owner, a job, needs them; one a line

Runs have links to the files: what is forgotten here, they keep. A file in a run that is linked here is never written
again: checkpoints and results are made once.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from tiermesh.adapters.intake import Intake, in_blocks, sync_folder
from tiermesh.adapters.model_cache import sha256_of
from tiermesh.adapters.pins import Pins
from tiermesh.errors import BodyTooLarge, DataUnusable, StateUnwritable, Unavailable, WrongOffset

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

CAP_BYTES = 64 << 30
"""All together; those that came or were used longest ago make room, but for pinned ones."""
FREE_RESERVE_BYTES = 1 << 30
"""Left free on the disk, for checkpoints and for everybody else."""
PART_KEPT_S = 3600.0
"""An upload that broke off may go on for so long; a client that comes back later begins again."""
MAX_PARTS = 64
"""Uploads on their way at once."""
STAGED, PART, PINS = ".coming-", ".part-", ".pins"
NAME_LIMIT = 80
"""Bytes of a dataset's own name that a run keeps."""
EMPTY = hashlib.sha256(b"").hexdigest()
_DIGEST = re.compile("[0-9a-f]{64}")


class Blobs:
    """One folder of one node. Made once; `open` before all else."""

    def __init__(self, folder: Path, *, cap_bytes: int = CAP_BYTES) -> None:
        self._folder = folder
        self._cap_bytes = cap_bytes
        self._pins = Pins(folder / PINS)
        self._parts: dict[str, Intake] = {}
        """With what was hashed so far."""
        self._sound: set[str] = set()
        """Known to be what their names say."""
        self._at_most_bytes = cap_bytes
        """No more than this is here. Looked up when it might matter: a folder of thousands of files takes its time."""
        self._busy: set[str] = set()
        """Parts that are being written just now."""

    def open(self) -> None:
        """Remove what an earlier daemon did not finish, and read who needs what."""
        self._pins.open()
        for path in self._folder.glob(f"{STAGED}*"):
            path.unlink(missing_ok=True)
        self.tidy()

    def find(self, sha256: str) -> Path | None:
        """The file of this digest, if it is here."""
        path = self._folder / sha256
        return path if _DIGEST.fullmatch(sha256) and path.is_file() else None

    async def sound(self, sha256: str) -> Path | None:
        """As `find`, after a look at every byte, once in this daemon's life. What the disk has spoiled is removed."""
        path = self.find(sha256)
        if path is None or sha256 in self._sound:
            return path
        try:
            found = await self._on_disk(sha256_of, path)
        except StateUnwritable as error:
            found = str(error)
        if found != sha256:
            log.warning("%s is not what it was any more, and is removed: %s", path, found)
            path.unlink(missing_ok=True)
            return None
        self._sound.add(sha256)
        return path

    def received(self, sha256: str) -> int:
        """Bytes that are here of an upload in pieces that is not whole."""
        try:
            return self._part(sha256).stat().st_size if _DIGEST.fullmatch(sha256) else 0
        except FileNotFoundError:
            return 0

    async def put(self, sha256: str, chunks: AsyncIterator[bytes], declared_bytes: int | None) -> Path:
        """Take a file in; it appears whole, or not at all.

        Raises `BodyTooLarge` when there is no room for it, `DataUnusable` when it is empty or not what its digest
        says, and `StateUnwritable`.
        """
        self.make_room(declared_bytes or 0)
        intake = Intake(self._folder / f"{STAGED}{secrets.token_hex(8)}")
        try:
            await self._on_disk(intake.go_on)
            async for block in in_blocks(chunks):
                self._check_room(intake.size_bytes + len(block))
                self._at_most_bytes += len(block)
                await self._on_disk(intake.write, block)
            if not intake.size_bytes:
                raise DataUnusable("the data is empty", param="data")
            await self._publish(intake, sha256)
        finally:
            intake.discard()
        self.make_room(0)
        return self._folder / sha256

    async def put_part(
        self, sha256: str, chunks: AsyncIterator[bytes], *, offset: int, total_bytes: int
    ) -> Path | None:
        """Take in what comes from `offset` on, of a file of `total_bytes`; its path once it is whole.

        What came before `chunks` broke is kept for `PART_KEPT_S`. Raises as `put`, and `WrongOffset` when the piece
        does not begin where the last one ended, or another one is being written; nothing was read of it then.
        """
        if (there := self.find(sha256)) is not None:
            return there
        received = self.received(sha256)
        if sha256 in self._busy:
            raise WrongOffset("this data is being sent by somebody else just now; ask again how much is there")
        if offset != received or offset > total_bytes:
            raise WrongOffset(f"{received:,} bytes are there: go on from there, not from {offset:,}")
        self._begin_part(sha256, total_bytes - received)
        try:
            return await self._take_part(sha256, chunks, total_bytes)
        finally:
            self._busy.discard(sha256)

    async def put_whole(self, content: bytes) -> str:
        """Take in what is in memory already; gives its digest."""
        sha256 = hashlib.sha256(content).hexdigest()
        if self.find(sha256) is None:
            await self.put(sha256, _once(content), len(content))
        return sha256

    async def adopt(self, path: Path) -> tuple[str, int]:
        """Keep a file of this machine, which nobody will write again; gives its digest and size.

        Raises `FileNotFoundError` when it went, `StateUnwritable`.
        """
        try:
            sha256, size = await self._in_thread(self._adopt, path)
            self._at_most_bytes += size
            return sha256, size
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._unwritable(error) from error

    def link(self, sha256: str, name: str, folder: Path) -> Path | None:
        """Give the run in `folder` its dataset, under a safe form of `name`; None when it is not here.

        Raises `StateUnwritable`.
        """
        target = folder / safe_name(name)
        if target.is_file():
            return target
        if self.find(sha256) is None:
            return None
        try:
            self.lay(sha256, target)
        except OSError as error:
            if self.find(sha256) is None:
                return None  # it had to make room just now
            raise self._unwritable(error) from error
        return target

    def lay(self, sha256: str, target: Path) -> None:
        """Have the file at `target` too; its folder is made. Blocks. Raises `OSError`."""
        source = self._folder / sha256
        target.parent.mkdir(parents=True, exist_ok=True)
        os.utime(source)
        _link_or_copy(source, target)

    def pin(self, owner: str, digests: Iterable[str]) -> None:
        """These stay until `owner` is unpinned, also those that have yet to come. Raises `StateUnwritable`."""
        try:
            self._pins.add(owner, digests)
        except OSError as error:
            raise self._unwritable(error) from error

    def unpin(self, owner: str) -> frozenset[str]:
        """They may go when room is needed; gives those that nobody else pins."""
        return self._pins.drop(owner)

    def pinned(self, owner: str) -> frozenset[str]:
        """What it keeps here."""
        return self._pins.of(owner)

    def owners(self) -> list[str]:
        """All that keep something."""
        return self._pins.owners()

    def remove(self, digests: Iterable[str]) -> None:
        """At once, but for pinned ones."""
        for digest in frozenset(digests) - self._pins.all():
            (self._folder / digest).unlink(missing_ok=True)
            self._sound.discard(digest)
            self.drop_part(digest)

    def drop_part(self, sha256: str) -> None:
        """Forget an upload that is not whole."""
        if sha256 not in self._busy:
            intake = self._parts.pop(sha256, None)
            if intake is not None:
                intake.discard()
            self._part(sha256).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Forget uploads that nobody went on with."""
        oldest = time.time() - PART_KEPT_S
        for path, stat in self._all():
            if path.name.startswith(PART) and stat.st_mtime < oldest:
                self.drop_part(path.name.removeprefix(PART))

    def make_room(self, wanted_bytes: int) -> None:
        """For so much, by forgetting the oldest that nobody needs. Raises `BodyTooLarge`, and nothing is forgotten."""
        if wanted_bytes > self._cap_bytes:
            raise BodyTooLarge(f"{wanted_bytes:,} bytes are more than the {self._cap_bytes:,} that this node keeps")
        free = shutil.disk_usage(self._folder).free - FREE_RESERVE_BYTES
        if self._at_most_bytes + wanted_bytes <= self._cap_bytes and (wanted_bytes <= free or not wanted_bytes):
            return
        pinned, there = self._pins.all(), self._all()
        loose = sorted((p for p in there if p[0].name not in pinned), key=lambda p: p[1].st_mtime)
        loose = [(path, stat) for path, stat in loose if not path.name.startswith((STAGED, PART))]
        total = self._at_most_bytes = sum(stat.st_size for _, stat in there)
        over = total + wanted_bytes - self._cap_bytes
        short = wanted_bytes - free
        if wanted_bytes and over > sum(stat.st_size for _, stat in loose):
            kept = f"this node keeps {self._cap_bytes:,}, and jobs need what is there"
            raise BodyTooLarge(f"{wanted_bytes:,} bytes don't fit: {kept}")
        if wanted_bytes and short > (freed := sum(stat.st_size for _, stat in loose if stat.st_nlink == 1)):
            room = max(0, wanted_bytes - short + freed)
            raise BodyTooLarge(f"{wanted_bytes:,} bytes don't fit on this node's disk, which has {room:,} to spare")
        for path, stat in loose:
            if over <= 0 and (short <= 0 or not wanted_bytes):
                return
            path.unlink(missing_ok=True)
            self._sound.discard(path.name)
            self._at_most_bytes -= stat.st_size
            over -= stat.st_size
            short -= stat.st_size if stat.st_nlink == 1 else 0

    def _begin_part(self, sha256: str, wanted_bytes: int) -> None:
        self.tidy()
        self.make_room(wanted_bytes)
        if sha256 not in self._parts and len(self._parts) >= MAX_PARTS:
            raise Unavailable(f"{MAX_PARTS} other uploads are on their way to this node", retry_after_s=10)
        self._busy.add(sha256)

    async def _take_part(self, sha256: str, chunks: AsyncIterator[bytes], total_bytes: int) -> Path | None:
        intake = self._parts.setdefault(sha256, Intake(self._part(sha256)))
        try:
            await self._on_disk(intake.go_on)
            async for block in in_blocks(chunks):
                if intake.size_bytes + len(block) > total_bytes:
                    raise DataUnusable(f"more than the {total_bytes:,} bytes came that were declared", param="data")
                self._check_room(intake.size_bytes + len(block))
                self._at_most_bytes += len(block)
                await self._on_disk(intake.write, block)
            if intake.size_bytes < total_bytes:
                return None
            await self._publish(intake, sha256)
        except (DataUnusable, BodyTooLarge, StateUnwritable):
            self._parts.pop(sha256, None)
            self._part(sha256).unlink(missing_ok=True)
            raise
        finally:
            intake.rest()
        self._parts.pop(sha256, None)
        return self._folder / sha256

    async def _publish(self, intake: Intake, sha256: str) -> None:
        if (found := await self._on_disk(intake.finish)) != sha256:
            raise DataUnusable(
                f"the data that came has SHA-256 {found}, not {sha256}: it was changed or cut off on its way; "
                "send it again",
                param="data",
            )
        await self._on_disk(intake.publish, self._folder / sha256)
        self._sound.add(sha256)

    def _adopt(self, path: Path) -> tuple[str, int]:
        sha256, size = sha256_of(path), path.stat().st_size
        final = self._folder / sha256
        if final.is_file():
            os.utime(final)
            return sha256, size
        staged = self._folder / f"{STAGED}{secrets.token_hex(8)}"
        try:
            _link_or_copy(path, staged)
            staged.replace(final)
            sync_folder(self._folder)
        finally:
            staged.unlink(missing_ok=True)
        return sha256, size

    async def _on_disk(self, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        try:
            return await self._in_thread(work, *args, **named)
        except OSError as error:
            raise self._unwritable(error) from error

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Who is cancelled leaves when it is done, so that no file is written behind anybody's back."""
        done = asyncio.ensure_future(asyncio.to_thread(work, *args, **named))
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.gather(done, return_exceptions=True)
            raise

    def _unwritable(self, error: OSError) -> StateUnwritable:
        return StateUnwritable(f"{self._folder} can't be written: {error.strerror or error}. Free or repair the disk")

    def _check_room(self, size_bytes: int) -> None:
        if size_bytes > self._cap_bytes:
            raise BodyTooLarge(f"the data is larger than the {self._cap_bytes:,} bytes that this node keeps")
        if shutil.disk_usage(self._folder).free < FREE_RESERVE_BYTES:
            raise BodyTooLarge(f"this node's disk is full: {FREE_RESERVE_BYTES:,} bytes must stay free")

    def _part(self, sha256: str) -> Path:
        return self._folder / f"{PART}{sha256}"

    def _all(self) -> list[tuple[Path, os.stat_result]]:
        """Files, finished or not; threads publish and remove some at any time."""
        found = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                found.append((path, path.stat()))
        return [(path, stat) for path, stat in found if path.name != PINS]


def safe_name(name: str) -> str:
    """The last part of a path, of either kind, as a file name that can do no harm."""
    last = re.split(r"[/\\]", name)[-1]
    plain = re.sub(r"[^\w.-]", "_", last).lstrip(".-")
    return plain.encode()[-NAME_LIMIT:].decode(errors="ignore") or "data"


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without hard links, or another one
        shutil.copyfile(source, target)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
