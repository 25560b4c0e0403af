"""A file that is being written and hashed, at once or in pieces that go on where the last one ended."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from io import FileIO
from pathlib import Path

BLOCK_BYTES = 1 << 20
"""Written and hashed at once, in a thread."""


class Intake:
    """The file at `path`, which need not be there. All methods block but `rest` and `discard`, which are quick."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = hashlib.sha256()
        self._file: FileIO | None = None
        self.size_bytes = 0
        """Written and hashed."""

    def go_on(self) -> None:
        """Open it, at first or after `rest`; what is in the file and was not hashed here is hashed now."""
        if self._file is None:
            self._file = self._path.open("ab", buffering=0)
        if os.fstat(self._file.fileno()).st_size != self.size_bytes:
            self._hash, self.size_bytes = hashlib.sha256(), 0
            with self._path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    self._hash.update(block)
                    self.size_bytes += len(block)

    def rest(self) -> None:
        """No more comes for now."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def write(self, block: bytes) -> None:
        """Append."""
        assert self._file is not None, "go_on() comes first"
        view = memoryview(block)
        while view:
            view = view[self._file.write(view) :]
        self._hash.update(block)
        self.size_bytes += len(block)

    def finish(self) -> str:
        """On the disk; gives its digest."""
        assert self._file is not None, "go_on() comes first"
        os.fsync(self._file.fileno())
        return self._hash.hexdigest()

    def publish(self, final: Path) -> None:
        """Under its name, whole."""
        self._path.replace(final)
        sync_folder(final.parent)

    def discard(self) -> None:
        """Nothing of it stays, unless it was published."""
        self.rest()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Have the disk know the folder's names."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def in_blocks(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in larger pieces; those that came before `chunks` broke are given too."""
    kept = bytearray()
    try:
        async for chunk in chunks:
            kept += chunk
            if len(kept) >= BLOCK_BYTES:
                yield bytes(kept)
                kept.clear()
    except Exception as error:
        if kept:
            yield bytes(kept)
        raise error
    if kept:
        yield bytes(kept)
