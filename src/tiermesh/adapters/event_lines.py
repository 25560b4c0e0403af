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

    def read(self) -> Iterator[tuple[int, bytes]]:
        """Those that are whole by now and were not given before. What is no event is counted and not given."""
        while block := self._block():
            self._offset += len(block)
            *lines, self._unfinished = (self._unfinished + block).split(b"\n")
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
