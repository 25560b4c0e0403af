"""What a running worker is told from outside: stop, pause, go on.

| told by | means |
|---|---|
| SIGTERM, SIGINT, end of standard input | stop: save and exit with `STOPPED` |
| SIGUSR1, or a file `pause` in the run's folder | pause at the end of the step |
| SIGUSR2, or the file removed | go on |

The loop asks between micro-batches whether to stop: a step that was begun is dropped then, because a step may take
longer than there is time; what is saved is the state before it. Where even a micro-batch takes longer, or a library
hangs, a thread ends the process, and the last checkpoint on disk is what it goes on from: `ORPHAN_GRACE_S` after the
parent's death, `grace_s` after an order of one that lives.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tiermesh.protocol.run_folder import STOPPED, RunFolder

ORPHAN_GRACE_S = 4.5
"""Five seconds after a daemon's death there are no orphans."""

GRACE_S = 110.0
"""Shorter than the time after which the launcher kills, and long enough to save a large model."""

LOOK_S = 0.5
"""How often a paused run looks whether it may go on."""

END_LOOK_S = 0.1
"""How often a stopping process looks whether its time is up."""

log = logging.getLogger(__name__)


class Orders:
    """Made once a process, on its main thread. Methods may be called from any thread."""

    def __init__(self, run_folder: Path, *, grace_s: float = GRACE_S) -> None:
        self.reason = ""
        """Why it stops, for the last event."""
        self._stop = threading.Event()
        self._paused_by_signal = False
        self._file = RunFolder(run_folder).pause
        self._grace_s = grace_s
        self._parent = os.getppid()
        self._is_orphan = False
        self._has_begun = False

    def listen(self) -> None:
        """Take the signals."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGUSR1, self._on_pause)
        signal.signal(signal.SIGUSR2, self._on_pause)

    @property
    def stopping(self) -> bool:
        """Asked between micro-batches."""
        return self._stop.is_set()

    @property
    def pausing(self) -> bool:
        """Asked at the end of a step."""
        return self._paused_by_signal or self._file.exists()

    def stop(self, reason: str) -> None:
        """From the lifeline and from the handlers. The first reason counts."""
        if self._stop.is_set():
            return
        self.reason = reason
        self._stop.set()
        threading.Thread(target=self._end_anyhow, name="end", daemon=True).start()

    def orphan(self) -> None:
        """From the lifeline: the parent is gone, perhaps since before this process knew who it was."""
        self._is_orphan = True
        self.stop("the end of standard input")

    def begin(self) -> None:
        """From now on there is something to save; until then an orphan ends at once, however long loading takes."""
        self._has_begun = True

    def wait_while(self, waiting: Callable[[], bool], look_s: float = LOOK_S) -> float:
        """Stay until `waiting` is false or the run is to stop; gives the seconds it took."""
        began = time.monotonic()
        while waiting() and not self._stop.wait(look_s):
            pass
        return time.monotonic() - began

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.stop(signal.Signals(number).name)

    def _on_pause(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._paused_by_signal = number == signal.SIGUSR1

    def _end_anyhow(self) -> None:
        ends = time.monotonic() + self._grace_s
        while time.monotonic() < ends:
            if self._is_orphan or os.getppid() != self._parent:
                if not self._has_begun:
                    break
                ends = min(ends, time.monotonic() + ORPHAN_GRACE_S)
            time.sleep(END_LOOK_S)
        log.warning("the run did not come to an end in time after %s", self.reason)
        os._exit(STOPPED)
