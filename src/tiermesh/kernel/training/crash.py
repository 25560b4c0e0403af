"""What is kept of a failure, for whoever has to find out why: one folder, readable without any tool of ours.

report.json     the failure, versions, machine, memory, the environment as far as it matters
stack.txt       the traceback, and where every thread was
events.jsonl    the last events
worker.log      the last lines
spec.json       what was run
"""

from __future__ import annotations

import faulthandler
import json
import os
import platform
import shutil
import time
import traceback
from collections import deque
from pathlib import Path
from typing import Any

import psutil
import torch

from tiermesh.errors import TrainingFailure
from tiermesh.kernel.training import memory
from tiermesh.kernel.training.state import LIBRARIES, installed
from tiermesh.protocol.run_folder import RunFolder

LAST_LINES = 200
KEPT = 5
"""Reports of one run; the first of a row of equal failures tells as much as the last."""
TOLD_VARIABLES = ("OMP_", "MKL_", "GOMP_", "KMP_", "TORCH", "PYTORCH", "CUDA", "GLIBC_", "LD_PRELOAD", "TIERMESH_CACHE")
"""Nothing else of the environment: it holds secrets."""


def write_report(folder: RunFolder, error: BaseException, failure: TrainingFailure) -> str | None:
    """Write it; gives its folder's name, or None when even that is refused. Never raises."""
    name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + f"-{os.getpid()}"
    place = folder.crash / name
    try:
        place.mkdir(parents=True, exist_ok=True)
        _write(place, folder, error, failure)
        _forget_old(folder.crash)
    except (OSError, MemoryError, RuntimeError, ValueError):
        return name if place.exists() else None
    return name


def _write(place: Path, folder: RunFolder, error: BaseException, failure: TrainingFailure) -> None:
    with (place / "stack.txt").open("w") as file:
        file.write("".join(traceback.format_exception(error)) + "\n")
        file.flush()
        faulthandler.dump_traceback(file)
    report = {
        "kind": failure.type,
        "message": str(failure),
        "at": time.time(),
        "memory": _memory(),
        "machine": _machine(),
    }
    (place / "report.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    for source in (folder.events, folder.log):
        _copy_end(source, place / source.name)
    if folder.plan.exists():
        shutil.copyfile(folder.plan, place / folder.plan.name)


def _memory() -> dict[str, Any]:
    machine = psutil.virtual_memory()
    cgroup = memory.own_cgroup()
    used, limit = (None, None) if cgroup is None else memory.cgroup_figures(cgroup)
    picture = {
        "resident_bytes": memory.resident_bytes(),
        "proportional_bytes": memory.proportional_bytes(),
        "peak_bytes": memory.peak_bytes(),
        "machine_bytes": machine.total,
        "available_bytes": machine.available,
        "cgroup_used_bytes": used,
        "cgroup_limit_bytes": limit,
        "limits": _limits(),
    }
    if torch.cuda.is_available():
        picture["gpu"] = torch.cuda.memory_stats()
    return picture


def _limits() -> dict[str, list[int]]:
    import resource

    kinds = {"data": resource.RLIMIT_DATA, "address_space": resource.RLIMIT_AS, "file_size": resource.RLIMIT_FSIZE}
    return {name: list(resource.getrlimit(kind)) for name, kind in kinds.items()}


def _machine() -> dict[str, Any]:
    load = os.getloadavg()
    return {
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": list(load),
        "versions": {name: told for name in LIBRARIES if (told := installed(name))}
        | {"python": platform.python_version()},
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(TOLD_VARIABLES)},
    }


def _copy_end(source: Path, target: Path) -> None:
    if source.exists():
        with source.open("rb") as file:
            target.write_bytes(b"".join(deque(file, LAST_LINES)))


def _forget_old(folder: Path) -> None:
    for old in sorted(path for path in folder.iterdir() if path.is_dir())[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
