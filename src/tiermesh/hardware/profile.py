"""The static facts of this machine, and the tier they suggest. What can't be read is None."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import psutil
import pynvml

from tiermesh.types import Gpu, Hardware, Tier

GIB = 1024**3

GPU_TIER_2_BYTES = 16 * GIB
"""Room for a 14B model in 4 bits with its context, or an 8B one in 8 bits."""

GPU_TIER_1_BYTES = 6 * GIB
"""Room for a 7B or 8B model in 4 bits."""

UNIFIED_TIER_2_BYTES = 64 * GIB
UNIFIED_TIER_1_BYTES = 16 * GIB
"""Apple silicon shares its memory with the GPU, and the system keeps a good part of it."""


def read_profile(folder: Path) -> Hardware:
    """Read this machine; `folder` names the disk whose free space counts. Takes some milliseconds, and blocks."""
    return Hardware(
        cpu_model=_cpu_model(),
        cores=psutil.cpu_count(logical=False) or psutil.cpu_count(),
        ram_bytes=psutil.virtual_memory().total,
        disk_free_bytes=_disk_free(folder),
        system=platform.system() or None,
        machine=platform.machine() or None,
        gpus=_gpus(),
    )


def derive_tier(hardware: Hardware) -> tuple[Tier, str]:
    """The tier that this hardware suggests, and why. A user's own judgement goes before it."""
    largest = max((g.memory_bytes or 0 for g in hardware.gpus), default=0)
    if largest:
        tier: Tier = 2 if largest >= GPU_TIER_2_BYTES else 1 if largest >= GPU_TIER_1_BYTES else 0
        return tier, f"GPU with {largest / GIB:.0f} GiB"
    if hardware.system == "Darwin" and hardware.machine == "arm64" and hardware.ram_bytes:
        ram = hardware.ram_bytes
        tier = 2 if ram >= UNIFIED_TIER_2_BYTES else 1 if ram >= UNIFIED_TIER_1_BYTES else 0
        return tier, f"Apple silicon with {ram / GIB:.0f} GiB"
    return 0, "no GPU found"


def _cpu_model() -> str | None:
    cpuinfo = Path("/proc/cpuinfo")
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _disk_free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _gpus() -> tuple[Gpu, ...]:
    """NVIDIA's accelerators through NVML; none when there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return tuple(_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    name = pynvml.nvmlDeviceGetName(handle)
    try:
        memory_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError:  # boards with unified memory have no figure of their own
        memory_bytes = None
    return Gpu(name if isinstance(name, str) else name.decode(), memory_bytes)
