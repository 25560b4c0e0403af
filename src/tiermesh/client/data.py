"""What is to be learnt from, on its way to a node."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

from tiermesh.errors import DataUnusable

BLOCK_BYTES = 1 << 20
"""Read and sent at once."""


class Data:
    """What is to be learnt from: a file of this machine, or what is in memory, under a `name` that tells its format."""

    def __init__(self, source: Path | str | bytes, name: str | None = None) -> None:
        """A text is a path. Bytes need a name such as `faq.jsonl`."""
        self._source = source if isinstance(source, bytes) else Path(source)
        self.name = name or (self._source.name if isinstance(self._source, Path) else "data")

    @property
    def size_bytes(self) -> int:
        """Raises `OSError` for a file that can't be read."""
        return self._source.stat().st_size if isinstance(self._source, Path) else len(self._source)

    async def sha256(self) -> str:
        """Hexadecimal. Raises `DataUnusable` for a file that can't be read."""
        try:
            return await asyncio.to_thread(self._digest)
        except OSError as error:
            reason = (error.strerror or "unknown reason").lower()
            raise DataUnusable(f"can't read the data {self._source!s}: {reason}") from error

    async def chunks(self, offset: int = 0, size_bytes: int | None = None) -> AsyncIterator[bytes]:
        """A part of it; None: up to its end."""
        end = self.size_bytes if size_bytes is None else offset + size_bytes
        if isinstance(self._source, bytes):
            yield self._source[offset:end]
            return
        with self._source.open("rb") as file:
            file.seek(offset)
            while offset < end and (block := await asyncio.to_thread(file.read, min(BLOCK_BYTES, end - offset))):
                offset += len(block)
                yield block

    def _digest(self) -> str:
        if isinstance(self._source, bytes):
            return hashlib.sha256(self._source).hexdigest()
        with self._source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
