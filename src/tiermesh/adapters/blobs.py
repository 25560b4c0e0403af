"""What this node keeps by its content: datasets, checkpoints, results; each file is named by its SHA-256.

    <folder>/<sha256>         whole and verified
    <folder>/.part-<sha256>   on its way in pieces; goes on where it ended, also after a restart of the daemon
    <folder>/.coming-*        on its way at once; what a dead daemon left is removed at the next start
    <folder>/.pins/<owner>    the digests that stay while their owner, a job, needs them; one a line
    <folder>/.gone/*          on its way out (`adapters/room`)

Runs have links to the files: what is forgotten here, they keep. A file in a run that is linked here is never written
again: checkpoints and results are made once.
"""

from __future__ import annotations

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
from tiermesh.adapters.room import Room, in_thread
from tiermesh.errors import BodyTooLarge, DataUnusable, StateUnwritable, Unavailable, WrongOffset

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

CAP_BYTES = 64 << 30
"""All together; those that came or were used longest ago make room, but for pinned ones."""
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
        self._pins = Pins(folder / PINS)
        self._parts: dict[str, Intake] = {}
        """With what was hashed so far."""
        self._sound: set[str] = set()
        """Known to be what their names say."""
        self._room = Room(folder, cap_bytes, is_needed=self._pins.needs, on_gone=self._sound.discard)
        self._busy: set[str] = set()
        """Parts that are being written just now."""

    def open(self) -> None:
        """Remove what an earlier daemon did not finish, and read who needs what. Blocks."""
        self._pins.open()
        self._room.open()
        for path in (*self._folder.glob(f"{STAGED}*"), *self._stale_parts()):
            path.unlink(missing_ok=True)

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

    def doubt(self, digests: Iterable[str]) -> None:
        """Look at every byte of these once more before `sound` gives them: what comes of them can't be undone."""
        self._sound.difference_update(digests)

    def received(self, sha256: str) -> int:
        """Bytes that are here of an upload in pieces that is not whole."""
        try:
            return self._part(sha256).stat().st_size if _DIGEST.fullmatch(sha256) else 0
        except FileNotFoundError:
            return 0

    def is_coming(self, sha256: str) -> bool:
        """Whether a piece of it is being received."""
        return sha256 in self._busy

    async def put(self, sha256: str, chunks: AsyncIterator[bytes], declared_bytes: int | None) -> Path:
        """Take a file in; it appears whole, or not at all.

        Raises `BodyTooLarge` when there is no room for it, `DataUnusable` when it is empty or not what its digest
        says, and `StateUnwritable`.
        """
        await self.make_room(declared_bytes or 0)
        intake = Intake(coming := self._folder / f"{STAGED}{secrets.token_hex(8)}")
        try:
            await self._on_disk(intake.go_on)
            async for block in in_blocks(chunks):
                self._room.check(intake.size_bytes + len(block))
                self._room.grew(len(block))
                await self._on_disk(intake.write, block)
            if not intake.size_bytes:
                raise DataUnusable("the data is empty", param="data")
            await self._publish(intake, sha256)
        except BaseException:
            self._throw_away(coming)
            raise
        finally:
            intake.rest()
        await self.make_room(0)
        return self._folder / sha256

    async def put_part(
        self, sha256: str, chunks: AsyncIterator[bytes], *, offset: int, total_bytes: int
    ) -> Path | None:
        """Take in what comes from `offset` on, of a file of `total_bytes`; its path once it is whole.

        What came before `chunks` broke is kept for `PART_KEPT_S`. Raises as `put`, and `WrongOffset` when the piece
        does not begin where the last one ended, or another one is being written; nothing was read of it then.
        """
        if self._is_full(sha256):
            await self.tidy()
        if (there := self.find(sha256)) is not None:
            return there
        received = self.received(sha256)
        if self.is_coming(sha256):
            raise WrongOffset("this data is being sent by somebody else just now; ask again how much is there")
        if offset != received or offset > total_bytes:
            raise WrongOffset(f"{received:,} bytes are there: go on from there, not from {offset:,}")
        if self._is_full(sha256):
            raise Unavailable(f"{MAX_PARTS} other uploads are on their way to this node", retry_after_s=10)
        self._busy.add(sha256)
        try:
            return await self._take_part(sha256, chunks, received, total_bytes)
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
            sha256, size = await in_thread(self._adopt, path)
            self._sound.add(sha256)
            self._room.grew(size)
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
        self._room.touch(source)
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
        """At once, but for pinned ones. The disk has their room a moment later. Raises `OSError`."""
        for digest in frozenset(digests):
            if not self._pins.needs(digest):
                self._room.discard(self._folder / digest)
                self._sound.discard(digest)
                self.drop_part(digest)
        self._room.empty_soon()

    def drop_part(self, sha256: str) -> None:
        """Forget an upload that is not whole."""
        if sha256 not in self._busy:
            intake = self._parts.pop(sha256, None)
            if intake is not None:
                intake.rest()
            self._room.discard(self._part(sha256))

    async def tidy(self) -> None:
        """Forget uploads that nobody went on with. Raises `StateUnwritable`."""
        try:
            for path in await in_thread(self._stale_parts):
                if _is_stale(path):  # still: somebody may have gone on with it just now
                    self.drop_part(path.name.removeprefix(PART))
            await in_thread(self._room.empty)
        except OSError as error:
            raise self._unwritable(error) from error

    async def make_room(self, wanted_bytes: int) -> None:
        """As `Room.make`, and raises `StateUnwritable`."""
        try:
            await self._room.make(wanted_bytes)
        except OSError as error:
            raise self._unwritable(error) from error

    async def _take_part(
        self, sha256: str, chunks: AsyncIterator[bytes], received: int, total_bytes: int
    ) -> Path | None:
        await self.make_room(total_bytes - received)
        intake = self._parts.setdefault(sha256, Intake(self._part(sha256)))
        try:
            await self._on_disk(intake.go_on)
            async for block in in_blocks(chunks):
                if intake.size_bytes + len(block) > total_bytes:
                    raise DataUnusable(f"more than the {total_bytes:,} bytes came that were declared", param="data")
                self._room.check(intake.size_bytes + len(block))
                self._room.grew(len(block))
                await self._on_disk(intake.write, block)
            if intake.size_bytes < total_bytes:
                return None
            await self._publish(intake, sha256)
        except (DataUnusable, BodyTooLarge, StateUnwritable):
            self._parts.pop(sha256, None)
            self._throw_away(self._part(sha256))
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
        if sha256 in self._sound and self._room.touch(final):
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
            return await in_thread(work, *args, **named)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StateUnwritable:
        return StateUnwritable(f"{self._folder} can't be written: {error.strerror or error}. Free or repair the disk")

    def _is_full(self, sha256: str) -> bool:
        """With other uploads."""
        return sha256 not in self._parts and len(self._parts.keys() | self._busy) >= MAX_PARTS

    def _throw_away(self, path: Path) -> None:
        """What came of something that did not come whole."""
        with suppress(OSError):
            self._room.discard(path)
        self._room.empty_soon()

    def _part(self, sha256: str) -> Path:
        return self._folder / f"{PART}{sha256}"

    def _stale_parts(self) -> list[Path]:
        """Blocks."""
        return [path for path in self._folder.glob(f"{PART}*") if _is_stale(path)]


def safe_name(name: str) -> str:
    """The last part of a path, of either kind, as a file name that can do no harm."""
    last = re.split(r"[/\\]", name)[-1]
    plain = re.sub(r"[^\w.-]", "_", last).lstrip(".-")
    return plain.encode()[-NAME_LIMIT:].decode(errors="ignore") or "data"


def _is_stale(part: Path) -> bool:
    try:
        return part.stat().st_mtime < time.time() - PART_KEPT_S
    except FileNotFoundError:
        return False


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without hard links, or another one
        shutil.copyfile(source, target)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
