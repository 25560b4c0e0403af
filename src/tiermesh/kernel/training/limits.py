"""The most memory that this process may take, held by the operating system and not by us.

RLIMIT_DATA counts what is mapped to be written and private, used or not, and refuses what is beyond: torch raises, the
run takes relief and does the same step again. A cgroup counts what is used and kills; it holds what a rlimit can't see
(files that are mapped, shared memory). Its tree belongs to whoever runs the machine, so one is made only where
`TIERMESH_CGROUP` names a folder for it: of version 2 with memory in its `cgroup.subtree_control`, or of version 1.

Where nobody set a limit it is what is free when the run begins, and no cgroup is made.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from tiermesh.core.worker_death import CGROUP_VARIABLE, cgroup_name
from tiermesh.errors import BadSpec, OutOfMemory
from tiermesh.kernel.training.memory import available_bytes

MIN_ROOM_BYTES = 64 << 20
"""With less than this above what the libraries take already, not even a small model can be loaded."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Applied:
    """What holds this process."""

    limit_bytes: int
    rlimit_bytes: int | None = None
    cgroup: Path | None = None


def apply(limit_bytes: int, environment: Mapping[str, str] = os.environ) -> Applied:
    """Hold this process at `limit_bytes` of resident memory. Call once, when the libraries are loaded and before the
    model is: what they reserve without using it is not counted.

    Raises `BadSpec` when they alone take more than that: no smaller batch would help.
    """
    resident, reserved = _resident_bytes(), _data_bytes()
    if resident + MIN_ROOM_BYTES > limit_bytes:
        raise BadSpec(
            f"memory_limit is {limit_bytes >> 20:,} MiB, and Python and torch take {resident >> 20:,} MiB before any "
            f"model is loaded, which takes {MIN_ROOM_BYTES >> 20} MiB at least; raise memory_limit"
        )
    cgroup = _join_cgroup(environment.get(CGROUP_VARIABLE), limit_bytes)
    if reserved is None:
        return Applied(limit_bytes, None, cgroup)
    return Applied(limit_bytes, _set(reserved + limit_bytes - resident), cgroup)


def hold_at_free(mapped_bytes: int = 0) -> int | None:
    """Where nobody set a limit: hold this process at what is free now, so that it is refused memory before the system
    must kill for it. Gives the limit; None where nothing can be held, or the memory in question is a GPU's.

    Nothing is kept back: the run takes relief by a limit that is a reserve below this one, and what is reserved without
    being used counts here. `mapped_bytes` of files may be mapped besides, which takes no memory but counts.

    Raises `OutOfMemory` when next to nothing is free.
    """
    reserved = _data_bytes()
    if reserved is None or torch.cuda.is_available():
        return None
    free = available_bytes()
    if free < MIN_ROOM_BYTES:
        raise OutOfMemory(
            f"not enough is free on this machine: {max(0, free) >> 20} MiB, and a model takes "
            f"{MIN_ROOM_BYTES >> 20} MiB at least",
            wanted_bytes=MIN_ROOM_BYTES,
            device="cpu",
        )
    return _set(reserved + free + mapped_bytes)


def _set(wanted: int) -> int:
    """The limit that it is then: whoever started this process may have set one."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    return soft


def _join_cgroup(parent: str | None, limit_bytes: int) -> Path | None:
    """A limit that can't be set is told; the rlimit holds all the same."""
    if not parent:
        return None
    folder = Path(parent) / cgroup_name(os.getpid())
    try:
        folder.mkdir(exist_ok=True)
        if (Path(parent) / "memory.limit_in_bytes").exists():
            (folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
        else:
            (folder / "memory.max").write_text(str(limit_bytes))
            (folder / "memory.swap.max").write_text("0")
        (folder / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        log.warning("no memory limit by cgroup: %s", error)
        return None
    return folder


def _resident_bytes() -> int:
    return _status("VmRSS") or 0


def _data_bytes() -> int | None:
    """None where the system doesn't count it as its limit does."""
    return _status("VmData") if sys.platform == "linux" else None


def _status(name: str) -> int | None:
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return None
