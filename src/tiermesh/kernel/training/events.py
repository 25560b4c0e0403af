"""Where a run's events go: first to its file, then to whoever else listens."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from tiermesh.protocol.training_events import TrainingEvent, Warned, to_line

log = logging.getLogger(__name__)

Listener = Callable[[TrainingEvent], None]


class Events:
    """Appends to `path`; each event is one write, so that a reader and a second writer never see half of one.

    Used from one thread at a time. A listener that raises is dropped, and a word said: curves are no reason to lose
    a run.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._listeners: list[Listener] = []
        _end_torn_line(path, self._file)

    def listen(self, listener: Listener) -> None:
        """Tell `listener` all that is said from now on."""
        self._listeners.append(listener)

    def say(self, event: TrainingEvent) -> None:
        """Record it, stamped with the time. Raises `OSError` when the disk refuses."""
        stamped = event.model_copy(update={"at": time.time()})
        line = to_line(stamped)
        while line:
            line = line[os.write(self._file, line) :]
        for listener in tuple(self._listeners):
            self._tell(listener, stamped)

    def close(self) -> None:
        """Once, at the end."""
        os.close(self._file)

    def _tell(self, listener: Listener, event: TrainingEvent) -> None:
        try:
            listener(event)
        except Exception as error:
            log.exception("a listener of the run's events is dropped")
            self._listeners.remove(listener)
            self.say(Warned(message=f"it is told of no more events: {error}"))


def _end_torn_line(path: Path, file: int) -> None:
    """A writer that was killed may have left half a line, which the next event must not become a part of."""
    size = path.stat().st_size
    if size:
        with path.open("rb") as text:
            text.seek(size - 1)
            torn = text.read(1) != b"\n"
        if torn:
            os.write(file, b"\n")
