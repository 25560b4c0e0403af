"""Child processes: their own group, a pipe that tells them when we die, a bounded log, an identity that survives us.

A pid alone proves nothing after a restart, because pids are used again; with its start time it names one process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

LOG_BYTES = 1 << 20
"""A log is moved to `*.1` at this size, so that one process keeps at most two of these on disk."""
TAIL_LINES = 20
"""Of the log, this much is kept at hand to say why a process died."""
READ_BYTES = 1 << 16
START_TIME_TOLERANCE_S = 1.0
"""The system computes start times from its clock, which may be corrected; a pid is not used again that soon."""
DRAIN_S = 1.0
"""After a process ended, what it wrote is read for this long; a grandchild may hold the pipe open for ever."""


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """Names one process for good: also after the daemon that started it is gone."""

    pid: int
    started: float
    """Unix time, seconds."""


class Process:
    """A running or ended child. Made by `spawn`; used on the loop that made it."""

    def __init__(self, child: subprocess.Popen[bytes], record: ProcessRecord, log: Path) -> None:
        self.record = record
        self._child = child
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._end = _end_of(child)
        self._pump = asyncio.create_task(self._copy_log(log), name=f"log of {record.pid}")

    @classmethod
    async def spawn(
        cls, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, pass_fds: Sequence[int] = ()
    ) -> Process:
        """Start `argv` with `env` added to our own, and with the open files `pass_fds`. Its standard input ends when
        we do.

        Call from a thread that lives as long as this process: Linux kills the child when that thread ends. Raises
        `OSError` when the program can't be started.
        """
        # Not by the loop, which would do the same: libuv's knows no process groups.
        child = subprocess.Popen(  # noqa: ASYNC220
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            env={**os.environ, **(env or {})},
            # Not a session of its own: Linux schedules sessions as equals (autogroup), and its niceness would be void.
            process_group=0,
            pass_fds=pass_fds,
        )
        return cls(child, ProcessRecord(child.pid, _start_time(child.pid)), log)

    @property
    def pid(self) -> int:
        """The child's process id, which is also its group's."""
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._child.returncode

    @property
    def last_words(self) -> str:
        """The last line that it wrote, or an empty text."""
        return self._tail[-1] if self._tail else ""

    async def wait(self) -> int:
        """Wait for the end and for the rest of the log; gives the return code."""
        code = await asyncio.shield(self._end)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._pump), DRAIN_S)
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        if self._child.stdin is not None:
            self._child.stdin.close()
        return code

    def ask_to_end(self) -> None:
        """SIGTERM to its group, without waiting for what comes of it."""
        if self._child.returncode is None:
            self._signal(signal.SIGTERM)

    async def terminate(self, grace_s: float) -> int:
        """Ask it to end, kill its whole group when it does not within `grace_s`, and wait. May be called twice."""
        self.ask_to_end()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._end), grace_s)
        self.kill()
        return await self.wait()

    def kill(self) -> None:
        """Kill the child and whatever it started, now; also when the child itself is gone and its group is not."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        """To the group. `subprocess` is not asked: it knows the child alone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, number)

    async def _copy_log(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = b""
        with _RotatingFile(path) as file:
            async with _output_of(self._child) as output:
                while block := await output.read(READ_BYTES):
                    with contextlib.suppress(OSError):  # a full disk loses lines of a log, and not who writes them
                        file.write(block)
                    *lines, unfinished = (unfinished[-READ_BYTES:] + block).split(b"\n")
                    self._keep(lines)
        self._keep([unfinished])

    def _keep(self, lines: Iterable[bytes]) -> None:
        texts = (line.decode(errors="replace").rstrip() for line in lines)
        self._tail.extend(text for text in texts if text)


def _end_of(child: subprocess.Popen[bytes]) -> asyncio.Future[int]:
    """Its return code, once it has one. A thread waits for it, which ends with the child."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def tell(code: int) -> None:
        if not ended.done():
            ended.set_result(code)

    def wait() -> None:
        code = child.wait()
        with contextlib.suppress(RuntimeError):  # the loop may be closed by then
            loop.call_soon_threadsafe(tell, code)

    threading.Thread(target=wait, name=f"wait for {child.pid}", daemon=True).start()
    return ended


@asynccontextmanager
async def _output_of(child: subprocess.Popen[bytes]) -> AsyncIterator[asyncio.StreamReader]:
    """What it writes."""
    assert child.stdout is not None
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), child.stdout
    )
    try:
        yield reader
    finally:
        transport.close()


class _RotatingFile:
    """Bytes appended to a file that is moved aside when it is full."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> _RotatingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, block: bytes) -> None:
        if self._file.tell() + len(block) > LOG_BYTES:
            self._file.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._file = self._path.open("ab", buffering=0)
        self._file.write(block)


def reap(records: Iterable[ProcessRecord]) -> list[int]:
    """Kill those of an earlier daemon's children that still live, groups and all; gives their pids.

    Another process that was given the same pid since is left alone.
    """
    killed = []
    for record in records:
        if is_alive(record):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(record.pid, signal.SIGKILL)
                killed.append(record.pid)
    return killed


def is_alive(record: ProcessRecord) -> bool:
    """Does this very process still run?"""
    try:
        process = psutil.Process(record.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return abs(process.create_time() - record.started) < START_TIME_TOLERANCE_S
    except psutil.Error:
        return False


def _start_time(pid: int) -> float:
    """0.0, which names nobody, for a process that ended already."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0
