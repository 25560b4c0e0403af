"""Files that were sent to this node under a name: what is known of each, as one small JSON file beside its data.

<folder>/<id>.json      the entry of a file whose data is in the store of blobs
<folder>/.coming-*      an upload on its way; what a dead daemon left is removed at the next start
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from tiermesh.adapters.intake import Intake, in_blocks
from tiermesh.errors import BodyTooLarge, InvalidInput, StateUnwritable

P = ParamSpec("P")
T = TypeVar("T")

LIMIT_BYTES = 512 << 20
"""Of one file, as OpenAI has it: what comes in one piece can't go on where it broke off."""
FREE_RESERVE_BYTES = 1 << 30
"""Left free on the disk, for checkpoints and for everybody else."""
ENTRIES_LIMIT = 10_000
"""Files of one node: a list of them is still read at once."""
STAGED = ".coming-"
_ID = re.compile(r"file-[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SentFile:
    """A file by its owner's name; `created_at` is Unix time."""

    id: str
    name: str
    purpose: str
    sha256: str
    size_bytes: int
    created_at: float


@dataclass(frozen=True, slots=True)
class Staged:
    """What came, whole, on the disk."""

    path: Path
    sha256: str
    size_bytes: int


class SentFiles:
    """The entries of one node, all in memory. Made once; `open` before all else. All but `all` and `find` block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: dict[str, SentFile] = {}

    def open(self) -> None:
        """Read what is there; an entry that can't be read is passed over."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self._folder.glob(f"{STAGED}*"):
            path.unlink(missing_ok=True)
        for path in self._folder.glob("*.json"):
            try:
                entry = SentFile(**json.loads(path.read_text("utf-8")))
            except (OSError, ValueError, TypeError):
                continue
            self._entries[entry.id] = entry

    def all(self) -> list[SentFile]:
        """The newest first."""
        return sorted(self._entries.values(), key=lambda entry: (entry.created_at, entry.id), reverse=True)

    def find(self, ident: str) -> SentFile | None:
        """None: nobody sent it here."""
        return self._entries.get(ident)

    def add(self, entry: SentFile) -> SentFile:
        """Keep it; what is there already stays as it is. Durable when it returns. Raises `InvalidInput` when full."""
        assert _ID.fullmatch(entry.id), entry.id
        if (there := self._entries.get(entry.id)) is not None:
            return there
        if len(self._entries) >= ENTRIES_LIMIT:
            raise InvalidInput(f"this node keeps {ENTRIES_LIMIT} files already; delete some first")
        staged, final = self._staged(), self._folder / f"{entry.id}.json"
        try:
            with staged.open("x", encoding="utf-8") as file:
                json.dump(asdict(entry), file)
                file.flush()
                os.fsync(file.fileno())
            staged.replace(final)
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        self._entries[entry.id] = entry
        return entry

    def remove(self, ident: str) -> SentFile | None:
        """Forget it; what it was."""
        entry = self._entries.pop(ident, None)
        if entry is not None:
            (self._folder / f"{entry.id}.json").unlink(missing_ok=True)
        return entry

    async def stage(self, chunks: AsyncIterator[bytes]) -> Staged:
        """Write what comes to a file that `discard` removes. Raises `BodyTooLarge`, `StateUnwritable`."""
        if shutil.disk_usage(self._folder).free < FREE_RESERVE_BYTES + LIMIT_BYTES:
            raise BodyTooLarge(f"this node's disk is full: {FREE_RESERVE_BYTES:,} bytes must stay free")
        path = self._staged()
        intake = Intake(path)
        try:
            await self._on_disk(intake.go_on)
            async for block in in_blocks(chunks):
                if intake.size_bytes + len(block) > LIMIT_BYTES:
                    raise BodyTooLarge(
                        f"file: is larger than {LIMIT_BYTES:,} bytes; send such data with PUT /api/data/SHA256, "
                        "which goes on where it broke off, and start its job with POST /api/train"
                    )
                await self._on_disk(intake.write, block)
            sha256 = await self._on_disk(intake.finish)
        except BaseException:
            intake.discard()
            raise
        intake.rest()
        return Staged(path, sha256, intake.size_bytes)

    def discard(self, path: Path) -> None:
        """Remove what was staged, if it is still there."""
        path.unlink(missing_ok=True)

    async def _on_disk(self, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        try:
            return await asyncio.to_thread(work, *args, **named)
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def _staged(self) -> Path:
        return self._folder / f"{STAGED}{secrets.token_hex(8)}"


def is_file_id(text: str) -> bool:
    """Is it the id of a file, or of something else?"""
    return _ID.fullmatch(text) is not None


def _unwritable(folder: Path, error: OSError) -> StateUnwritable:
    return StateUnwritable(f"{folder} can't be written: {error.strerror or error}. Free or repair the disk")
