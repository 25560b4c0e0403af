"""A training run as a process: started in its folder, followed by its events, told to stop, started again when the
operating system killed it for lack of memory.

The worker appends what happens to a file, so that nothing is lost when whoever watches dies. Here the file's end is
read, and what a worker that was killed could not say itself is added to it.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil

from tiermesh.adapters.death_report import Death, write_death_report
from tiermesh.adapters.model_cache import cache_folder
from tiermesh.adapters.process import Process, ProcessRecord
from tiermesh.adapters.process_memory import MemoryWatch
from tiermesh.adapters.run_events import EventTail, add_event
from tiermesh.core.worker_death import CGROUP_VARIABLE, Evidence, cgroup_name, ending_of
from tiermesh.core.worker_death import Ending as How
from tiermesh.errors import EnvironmentUnfit, RunBusy
from tiermesh.protocol.run_folder import RunFolder, RunPlan
from tiermesh.protocol.training_advice import ADVICE
from tiermesh.protocol.training_events import (
    Completed,
    Failed,
    FailureKind,
    Phase,
    PhaseName,
    Planned,
    Relieved,
    Restarted,
    Stopped,
    TrainingEvent,
)

Mode = Literal["train", "estimate", "evaluate", "evaluate_best"]
OnEvent = Callable[[TrainingEvent], None]
OnRecord = Callable[[ProcessRecord | None], None]
"""Hears which process the worker is, and None when it has ended."""

WORKER = (sys.executable, "-m", "tiermesh.kernel.training")
POLL_S = 0.1
"""How often the events and the worker's memory are looked at: nothing against a step, at once for a person."""
STOP_GRACE_S = 120.0
"""From SIGTERM to SIGKILL: room for a step of a large model and its checkpoint on a slow disk."""
MAX_RESTARTS = 3
"""After kills for lack of memory, each of a worker that takes less: what dies a fourth time is too large for this
machine."""
_ARGUMENTS: Mapping[Mode, tuple[str, ...]] = {
    "train": (),
    "estimate": ("--estimate",),
    "evaluate": ("--evaluate",),
    "evaluate_best": ("--evaluate", "--best"),
}

NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT))


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What to start. `plan` is written into the folder first; None: the one that it has. `threads` None: the cores of
    this machine. `memory_limit_bytes` None: the worker goes by what is free. `tighter`: how many times in a row it was
    killed for its memory."""

    folder: RunFolder
    plan: RunPlan | None = None
    mode: Mode = "train"
    threads: int | None = None
    memory_limit_bytes: int | None = None
    tighter: int = 0
    program: tuple[str, ...] = WORKER


@dataclass(frozen=True, slots=True)
class Ending:
    """How it ended, and why in a sentence. `last` is the event that says so, where the worker could say it.
    `micro_batch_size`: how many rows it computed at once in the end; it comes down when memory runs short."""

    how: How
    reason: str
    last: Completed | Failed | Stopped | None = None
    micro_batch_size: int | None = None


class Trainer:
    """One launch with its restarts. Made and used on one loop, from a thread that lives as long as this process."""

    def __init__(self, launch: Launch, on_event: OnEvent, on_record: OnRecord = lambda _: None) -> None:
        self._launch = launch
        self._on_event = on_event
        self._on_record = on_record
        self._process: Process | None = None
        self._asked_to_stop_at: float | None = None

    async def run(self) -> Ending:
        """Start the worker and follow it to its end. Raises `RunBusy` when another one trains in this folder, and
        `EnvironmentUnfit` when nothing can be written there.

        Cancelled, it kills the worker; the last checkpoint is good.
        """
        with _locked(self._launch.folder) as lock:
            launch = self._launch
            if launch.plan is not None:
                _write_plan(launch.folder, launch.plan)
            for attempt in range(MAX_RESTARTS + 1):
                life = await self._live(launch, lock)
                ending = self._ending(life)
                if not self._may_restart(ending) or attempt == MAX_RESTARTS:
                    break
                launch = replace(launch, tighter=attempt + 1)
                self._tell(_restarted(ending, launch))
            try:
                self._tell_of_death(ending, life)
            except OSError as error:
                ending = self._of_disk(ending, life, error)
            return replace(ending, micro_batch_size=life.micro_batch_size)

    def stop(self) -> None:
        """Ask the worker to end after a checkpoint; killed when it has not after `STOP_GRACE_S`."""
        if self._asked_to_stop_at is None:
            self._asked_to_stop_at = time.monotonic()
        if self._process is not None:
            self._process.ask_to_end()

    def kill(self) -> None:
        """End it now. What was saved stays."""
        self.stop()
        if self._process is not None:
            self._process.kill()

    async def _live(self, launch: Launch, lock: int) -> _Life:
        """From spawn to death, of one worker."""
        life = _Life(EventTail(launch.folder.events))
        process = await Process.spawn(
            _command(launch),
            log=launch.folder.log,
            env=environment(launch.threads or default_threads()),
            pass_fds=(lock,),
        )
        self._process = process
        try:
            self._on_record(process.record)
            if self._asked_to_stop_at is not None:
                process.ask_to_end()
            watch = MemoryWatch(process.pid, launch.memory_limit_bytes)
            await self._follow(process, life, watch)
        finally:
            process.kill()
            life.code = await process.wait()
            self._process = None  # its number may be another's from now on
            self._on_record(None)
        life.hear(self._on_event)
        life.pid, life.system_kills, life.last_words = process.pid, watch.system_kills(), process.last_words
        life.peak_bytes, life.memory_share = watch.peak_bytes, watch.share
        remove_cgroup(process.pid)
        return life

    async def _follow(self, process: Process, life: _Life, watch: MemoryWatch) -> None:
        end = asyncio.ensure_future(process.wait())
        try:
            while not (end.done() or self._is_overdue()):
                life.hear(self._on_event)
                watch.look()
                await asyncio.wait((end,), timeout=POLL_S)
        finally:
            end.cancel()
            await asyncio.gather(end, return_exceptions=True)

    def _is_overdue(self) -> bool:
        return self._asked_to_stop_at is not None and time.monotonic() > self._asked_to_stop_at + STOP_GRACE_S

    def _ending(self, life: _Life) -> Ending:
        how = ending_of(Evidence(returncode=life.code, memory_share=life.memory_share, system_kills=life.system_kills))
        match how, life.last:
            case "done", Completed() as last:
                return Ending("done", f"done after {last.step} steps", last)
            case "done", None if self._launch.mode != "train":
                return Ending("done", "done")
            case "failed", Failed() as last:
                return Ending("failed", last.message, last)
            case "stopped", Stopped() as last:
                return Ending("stopped", f"stopped after step {last.step}", last)
        if self._asked_to_stop_at is not None:
            return Ending("stopped", "ended before it could save; the checkpoint before is good")
        how = how if how in ("out_of_memory", "killed") else "crashed"
        return Ending(how, _sentence(how, life))

    def _may_restart(self, ending: Ending) -> bool:
        return ending.how == "out_of_memory" and self._launch.mode == "train" and self._asked_to_stop_at is None

    def _tell_of_death(self, ending: Ending, life: _Life) -> None:
        """What a worker that was killed did not say itself."""
        if ending.last is not None or ending.how == "done":
            return
        for phase in life.open_phases:
            self._tell(Phase(phase=phase, state="interrupted"))
        if ending.how == "stopped":
            self._tell(Stopped(step=life.step))
            return
        crash = write_death_report(self._launch.folder, life.death(ending))
        kind: FailureKind = "out_of_memory" if ending.how == "out_of_memory" else "unexplained"
        self._tell(Failed(kind=kind, message=ending.reason, advice=ADVICE[kind], step=life.step, crash=crash))

    def _of_disk(self, ending: Ending, life: _Life, error: OSError) -> Ending:
        """What a worker that died on a full disk could not write down either. Raises `error` when it is another."""
        if error.errno not in NO_SPACE:
            raise error
        if ending.how == "stopped":
            return ending
        message = f"no space is left at {self._launch.folder.path}; what was saved before is untouched"
        last = Failed(kind="disk_full", message=message, advice=ADVICE["disk_full"], step=life.step)
        self._on_event(last)
        return Ending("failed", message, last)

    def _tell(self, event: TrainingEvent) -> None:
        add_event(self._launch.folder.events, event)
        self._on_event(event)


class _Life:
    """What one worker was heard to say, and how it ended."""

    def __init__(self, tail: EventTail) -> None:
        self._tail = tail
        self.last: Completed | Failed | Stopped | None = None
        self.open_phases: dict[PhaseName, None] = {}
        self.step = 0
        self.micro_batch_size: int | None = None
        self.pid = 0
        self.code = 0
        self.last_words = ""
        self.peak_bytes = 0
        self.memory_share: float | None = None
        self.system_kills: int | None = None

    def hear(self, on_event: OnEvent) -> None:
        for event in self._tail.read():
            self._keep(event)
            on_event(event)

    def death(self, ending: Ending) -> Death:
        """For a report."""
        return Death(
            kind=ending.how,
            message=ending.reason,
            pid=self.pid,
            returncode=self.code,
            peak_bytes=self.peak_bytes,
            memory_share=self.memory_share,
            system_kills=self.system_kills,
        )

    def _keep(self, event: TrainingEvent) -> None:
        self.step = getattr(event, "step", None) or self.step
        match event:
            case Completed() | Failed() | Stopped():
                self.last = event
            case Planned() | Relieved():
                self.micro_batch_size = event.micro_batch_size
            case Phase(state="started"):
                self.open_phases[event.phase] = None
            case Phase():
                self.open_phases.pop(event.phase, None)


def remove_cgroup(pid: int) -> None:
    """The one that a worker that is dead made for itself. One that the system won't let go of yet stays."""
    if parent := os.environ.get(CGROUP_VARIABLE):
        with suppress(OSError):
            (Path(parent) / cgroup_name(pid)).rmdir()


def default_threads() -> int:
    """The cores that this process may run on; hyper-threads of one core do not help matrix products."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def environment(threads: int) -> Mapping[str, str]:
    """What must be set before the worker's libraries are loaded.

    Huge pages for the allocator are a third more speed where the kernel has them (`madvise` suffices). Nothing is
    fetched: what a run needs is on this machine before it starts.
    """
    tunables = ":".join(filter(None, (os.environ.get("GLIBC_TUNABLES"), "glibc.malloc.hugetlb=1")))
    return {
        "GLIBC_TUNABLES": tunables,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_OFFLINE": "1",
        "TIERMESH_CACHE": str(cache_folder()),
        "PYTHONUNBUFFERED": "1",
    }


@contextmanager
def _locked(folder: RunFolder) -> Iterator[int]:
    """The open lock file. The worker inherits it, so that the folder is taken for as long as either of us lives."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder.lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise RunBusy(f"{folder.path}: a worker trains here already; wait for it, or stop it") from None
    try:
        yield lock
    finally:
        os.close(lock)


def _write_plan(folder: RunFolder, plan: RunPlan) -> None:
    """A result that is there is of the plan before; that is put down first."""
    try:
        if folder.events.exists() and not _has_plan(folder, plan):
            add_event(folder.events, Phase(phase="result", state="interrupted", detail="the spec was changed"))
        folder.write_plan(plan)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _has_plan(folder: RunFolder, plan: RunPlan) -> bool:
    try:
        return folder.read_plan() == plan
    except (OSError, ValueError):
        return False


def _unwritable(folder: RunFolder, error: OSError) -> EnvironmentUnfit:
    return EnvironmentUnfit(f"{folder.path} can't be written: {(error.strerror or str(error)).lower()}")


def _command(launch: Launch) -> list[str]:
    limit = launch.memory_limit_bytes
    return [
        *launch.program,
        str(launch.folder.path),
        *_ARGUMENTS[launch.mode],
        *("--threads", str(launch.threads or default_threads())),
        *(("--memory-limit", str(limit)) if limit is not None else ()),
        *(("--tighten",) * launch.tighter),
    ]


def _restarted(ending: Ending, launch: Launch) -> Restarted:
    return Restarted(attempt=launch.tighter, reason=ending.reason, memory_limit_bytes=launch.memory_limit_bytes)


def _sentence(how: How, life: _Life) -> str:
    peak = f"{life.peak_bytes / 2**30:.2f} GiB"
    code = f"signal {-life.code}" if life.code < 0 else f"exit {life.code}"
    match how:
        case "out_of_memory":
            return f"the system killed the worker for lack of memory ({code}; it had taken {peak})"
        case "killed":
            return f"somebody killed the worker ({code}; it had taken {peak})"
        case _:
            return f"the worker crashed ({code}){': ' + life.last_words if life.last_words else ''}"
