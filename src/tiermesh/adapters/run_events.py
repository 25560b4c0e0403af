"""The file of a run's events, from outside: read as it grows, and added to when the worker can't any more."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from tiermesh.protocol.training_events import Completed, Phase, TrainingEvent, from_line, to_line

READ_BYTES = 1 << 20
"""Read at once; the rest follows in the same look."""


class EventTail:
    """What is appended to `path` after this was made, or all of it `from_start`. A file that is not there is empty."""

    def __init__(self, path: Path, *, from_start: bool = False) -> None:
        self._path = path
        self._offset = 0 if from_start or not path.exists() else path.stat().st_size
        self._unfinished = b""

    def read(self) -> Iterator[TrainingEvent]:
        """The events that are new, as far as their lines are whole."""
        while block := self._block():
            self._offset += len(block)
            *lines, self._unfinished = (self._unfinished + block).split(b"\n")
            for line in lines:
                event = from_line(line)
                if event is not None:
                    yield event

    def _block(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                return file.read(READ_BYTES)
        except FileNotFoundError:
            return b""


def completion(path: Path) -> Completed | None:
    """How a run ended well; None when it did not, or when its result is no longer what its plan asks for."""
    last = None
    for event in EventTail(path, from_start=True).read():
        match event:
            case Completed():
                last = event
            case Phase(phase="result"):
                last = None
    return last


def add_event(path: Path, event: TrainingEvent) -> None:
    """Append to a file whose writer is gone; it may have been killed within a line, which is ended first."""
    with path.open("ab", buffering=0) as file:
        file.write((b"\n" if _is_torn(path) else b"") + to_line(event.model_copy(update={"at": time.time()})))


def _is_torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
