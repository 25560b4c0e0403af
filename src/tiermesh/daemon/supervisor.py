"""Owns the worker processes of this daemon, and ends what an earlier daemon of this node left behind.

Workers end by themselves when their daemon dies: their standard input ends, and on Linux the system kills them. The
list of who ran is kept all the same, for the worker that was frozen, or deaf, at that moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tiermesh.adapters.process import ProcessRecord, is_alive, reap
from tiermesh.adapters.worker import Worker, WorkerSpec

log = logging.getLogger(__name__)

FILE_NAME = "workers.json"
LOOK_S = 0.05
"""How often an earlier daemon's workers are looked at while they may end by themselves."""


class Supervisor:
    """One for a daemon. `start` before the first worker; `close` ends all of them."""

    def __init__(self, state_dir: Path, file_name: str = FILE_NAME) -> None:
        self._path = state_dir / file_name
        self._workers: list[Worker] = []
        self._numbers = itertools.count()
        self._records: dict[int, ProcessRecord] = {}

    def start(self) -> None:
        """Kill what is left of an earlier daemon's workers."""
        for pid in reap(_read(self._path)):
            log.warning("ended worker %d, which an earlier daemon left behind", pid)
        self._write()

    def worker(self, spec: WorkerSpec, on_change: Callable[[], None]) -> Worker:
        """A new worker under supervision; nothing runs before it is asked for. Who hired it may close it."""
        number = next(self._numbers)
        worker = Worker(spec, on_change=on_change, on_record=lambda record: self._note(number, record))
        self._workers = [each for each in self._workers if each.state != "closed"] + [worker]
        return worker

    async def outlast(self, grace_s: float) -> None:
        """As `start`, for workers that save before they end: they have `grace_s` for it."""
        left = _read(self._path)
        ends = time.monotonic() + grace_s
        while any(map(is_alive, left)) and time.monotonic() < ends:  # noqa: ASYNC110 - they are nobody's children
            await asyncio.sleep(LOOK_S)
        self.start()

    def listing(self) -> Callable[[ProcessRecord | None], None]:
        """For somebody else's worker: what to call with its record, and with None when it has ended."""
        number = next(self._numbers)
        return lambda record: self._note(number, record)

    async def close(self) -> None:
        """End all workers, side by side, and wait. May be called twice."""
        await asyncio.gather(*(worker.close() for worker in self._workers))

    def _note(self, number: int, record: ProcessRecord | None) -> None:
        if record is None:
            self._records.pop(number, None)
        else:
            self._records[number] = record
        self._write()

    def _write(self) -> None:
        staged = self._path.with_suffix(".new")
        try:
            staged.write_text(json.dumps([asdict(record) for record in self._records.values()]), "utf-8")
            staged.replace(self._path)
        except OSError as error:  # a second net: no worker is lost for the want of it
            log.warning("%s, the list of workers, can't be written: %s", self._path, error)


def _read(path: Path) -> list[ProcessRecord]:
    """What was kept; a damaged file is worth no more than none."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return [ProcessRecord(**row) for row in json.loads(path.read_text("utf-8"))]
    return []
