"""A run's events as they stand in their file, each with the number of its line: the place from which a reader that was
cut off goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tiermesh.protocol.training_events import from_line

READ_BYTES = 1 << 18
"""Read at once: some hundred events, a millisecond."""


class EventLines:
    """The lines of `path` after the first `after`; it may grow, and need not be there yet."""

    def __init__(self, path: Path, after: int = 0) -> None:
        self._path = path
        self._after = after
        self._offset = 0
        self._number = 0
        self._unfinished = b""

    def has_more(self) -> bool:
        """Was anything written since? Cheap."""
        try:
            return self._path.stat().st_size > self._offset
        except FileNotFoundError:
            return False

    def read(self) -> list[tuple[int, bytes]]:
        """The next ones that are whole by now, from one block of the file; none: all were given. What is no event is
        counted and not given. Takes milliseconds: not for an event loop."""
        found: list[tuple[int, bytes]] = []
        while not found and (block := self._block()):
            self._offset += len(block)
            *lines, self._unfinished = (self._unfinished + block).split(b"\n")
            found = list(self._wanted(lines))
        return found

    def _wanted(self, lines: list[bytes]) -> Iterator[tuple[int, bytes]]:
        for line in lines:
            self._number += 1
            if self._number > self._after and from_line(line) is not None:
                yield self._number, line

    def _block(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                return file.read(READ_BYTES)
        except FileNotFoundError:
            return b""
