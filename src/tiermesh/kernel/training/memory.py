"""How much memory this run uses, how near its limit that is, and giving back what is free."""

from __future__ import annotations

import ctypes
import gc
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from tiermesh.core.admission import RESERVE_SHARE
from tiermesh.core.relief import Level, level_of

CGROUP_ROOT = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60
"""Version 1 of cgroups has no word for it and says a number above this."""

MACHINE_SHARE = 0.92
"""Above this a whole machine is so full that the system will look for somebody to kill; below it, what other programs
use is no business of this run's."""


@dataclass(frozen=True, slots=True)
class Usage:
    """One look. Bytes."""

    used_bytes: int
    """Resident memory and swap of this process; of the GPU where it computes there."""
    limit_bytes: int
    share: float
    """Of the limit, of the container's, or of a machine that is nearly full: whichever is the highest."""

    @property
    def level(self) -> Level:
        """How near the limit."""
        return level_of(self.share)


class Memory:
    """Looks at this process again and again; a look takes some 0.1 ms."""

    def __init__(self, limit_bytes: int | None, device: torch.device, cgroup: Path | None = None) -> None:
        self._process = psutil.Process()
        self._device = device
        self._cgroup = cgroup or own_cgroup()
        self.limit_bytes = limit_bytes if limit_bytes is not None else free_bytes()

    def look(self) -> Usage:
        """The state now."""
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            return Usage(total - free, total, (total - free) / total)
        used = resident_bytes()
        shares = [used / self.limit_bytes]
        if self._cgroup is not None and (share := _cgroup_share(self._cgroup)) is not None:
            shares.append(share)
        machine = psutil.virtual_memory()
        full = 1 - machine.available / machine.total
        if full >= MACHINE_SHARE:
            shares.append(full)
        return Usage(used, self.limit_bytes, max(shares))


def resident_bytes() -> int:
    """Of this process, with what of it was swapped out."""
    if sys.platform != "linux":
        return int(psutil.Process().memory_info().rss)
    wanted = {"VmRSS:", "VmSwap:"}
    with open("/proc/self/status") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.split(None, 1)[0] in wanted)


def peak_bytes() -> int:
    """The most that was ever resident."""
    if sys.platform != "linux":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


def proportional_bytes() -> int | None:
    """Resident memory with what is shared counted in parts (PSS), where the system tells it; takes milliseconds."""
    try:
        with open("/proc/self/smaps_rollup") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return None


def free_bytes() -> int:
    """What a run may take that was given no limit: what is free, less a reserve, with what this process has already."""
    return resident_bytes() + int(available_bytes() * (1 - RESERVE_SHARE))


def available_bytes() -> int:
    """What is free, of the machine and of the container."""
    free = psutil.virtual_memory().available
    cgroup = own_cgroup()
    if cgroup is not None:
        used, limit = cgroup_figures(cgroup)
        free = free if limit is None or used is None else min(free, limit - used)
    return free


def trim() -> None:
    """Give the system back what is free. Costs some milliseconds, and page faults afterwards."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # not in musl
            libc.malloc_trim(0)


def own_cgroup() -> Path | None:
    """The folder of the cgroup that holds this process's memory; None without one, or where it can't be seen."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    fields = [line.split(":", 2) for line in lines]
    for _, controllers, path in fields:
        if "memory" in controllers.split(","):
            return _seen(CGROUP_ROOT / "memory" / path.lstrip("/"), "memory.limit_in_bytes")
    unified = next((path for number, _, path in fields if number == "0"), None)
    return None if unified is None else _seen(CGROUP_ROOT / unified.lstrip("/"), "memory.max")


def cgroup_figures(folder: Path) -> tuple[int | None, int | None]:
    """Memory used, without the files that can be dropped at once, and the limit; None is unknown or none."""
    used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
    limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
    if used is not None:
        used -= _stat(folder).get("inactive_file", 0)
    return used, limit if limit is not None and limit < UNLIMITED else None


def _cgroup_share(folder: Path) -> float | None:
    used, limit = cgroup_figures(folder)
    return None if used is None or limit is None else used / limit


def _seen(folder: Path, name: str) -> Path | None:
    return folder if (folder / name).exists() else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # `max` is no number
        return None


def _stat(folder: Path) -> dict[str, int]:
    try:
        pairs = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
    except OSError:
        return {}
    return {name.removeprefix("total_"): int(value) for name, value in pairs}
