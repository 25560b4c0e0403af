"""A run's events as they stand in their file, each with an id: the place from which a reader that was cut off goes on.

An id is `attempt * ATTEMPT + line`. Lines that an earlier attempt left, and that were copied along with its checkpoint,
keep their ids; so ids rise over all attempts of a job, and nobody is told the same line twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tiermesh.protocol.training_events import AttemptBegun, from_line

READ_BYTES = 1 << 18
"""Read at once: some hundred events, a millisecond."""
MARK = b'"attempt"'
"""In the line where another attempt begins."""
ATTEMPT = 10**9
"""More lines than a file of events ever has."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where reading stands: bytes and lines that were read, and whose attempt's the next line is."""

    offset: int = 0
    line: int = 0
    attempt: int = 1


class EventLines:
    """The lines of `path` with an id above `after`; it may grow, and need not be there yet.

    `place` is one that an earlier reader of the same file came to.
    """

    def __init__(self, path: Path, after: int = 0, place: Place | None = None) -> None:
        self._path = path
        self._after = after
        self._place = place or Place()
        if self._size() < self._place.offset:  # another file by now
            self._place = Place()

    @property
    def place(self) -> Place:
        """Behind the last whole line that was read."""
        return self._place

    def has_more(self) -> bool:
        """Was anything written since? Cheap. Half a line counts."""
        return self._size() > self._place.offset

    def read(self) -> list[tuple[int, bytes]]:
        """The next ones that are whole by now, from one block of the file; none: all were given. What is no event is
        counted and not given. Takes milliseconds: not for an event loop."""
        found: list[tuple[int, bytes]] = []
        while not found and (lines := self._block()):
            found = list(self._wanted(lines))
        return found

    def _wanted(self, lines: list[bytes]) -> Iterator[tuple[int, bytes]]:
        for line in lines:
            place = self._place
            begun = from_line(line) if MARK in line else None
            attempt = begun.number if isinstance(begun, AttemptBegun) else place.attempt
            self._place = Place(place.offset + len(line) + 1, place.line + 1, attempt)
            number = attempt * ATTEMPT + self._place.line
            if number > self._after and from_line(line) is not None:
                yield number, line

    def _block(self) -> list[bytes]:
        """Whole lines; one that is longer than a block is read alone."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._place.offset)
                block = file.read(READ_BYTES)
                if block and b"\n" not in block:
                    block += file.readline()
        except FileNotFoundError:
            return []
        return block.split(b"\n")[:-1]

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0
