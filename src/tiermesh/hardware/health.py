"""How this machine is now: one look. What can't be read is None, never a guess."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pynvml

from tiermesh.core.health import GpuVitals, ProcessVitals, Vitals

T = TypeVar("T")

CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")
"""Names under which Linux tells the processor's temperature, the most exact first."""

RAPL = Path("/sys/class/powercap")
"""Where Linux counts the energy of the processor packages; most distributions let only root read it."""


@dataclass(slots=True)
class Energy:
    """A counter of microjoules and when it was read: power is the difference of two."""

    micro_j: int
    at: float


class Examiner:
    """Looks at this machine again and again. Each look blocks for some milliseconds: call it in a thread, one at a
    time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._energy: Energy | None = None
        self._nvml_open = False
        psutil.cpu_percent()  # the first one measures since the boot

    def look(self) -> Vitals:
        """Read everything that can be read. CPU use is the mean since the last look. Never raises."""
        memory = _read(psutil.virtual_memory)
        disk = _read(lambda: shutil.disk_usage(self._folder))
        return Vitals(
            at=time.time(),
            cpu_percent=_read(psutil.cpu_percent),
            cpu_temperature_c=_read(_cpu_temperature),
            memory_used_bytes=None if memory is None else memory.total - memory.available,
            memory_bytes=None if memory is None else memory.total,
            disk_used_bytes=None if disk is None else disk.used,
            disk_bytes=None if disk is None else disk.used + disk.free,
            power_w=_read(self._power),
            on_battery=_read(_on_battery),
            gpus=tuple(self._gpus()),
            process=_read(_process),
        )

    def _gpus(self) -> Iterator[GpuVitals]:
        """NVIDIA's accelerators through NVML; none when there is no driver. Some boards tell only a part.

        NVML stays open: when its last user closes it, the driver may put the boards down, and each look would wake
        them for a second.
        """
        if not self._nvml_open:
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError:
                return
            self._nvml_open = True
        count = _read(pynvml.nvmlDeviceGetCount)
        if count is None:  # the driver was updated or unloaded: begin anew at the next look
            self._nvml_open = False
            _read(pynvml.nvmlShutdown)
            return
        for index in range(count):
            gpu = _gpu(index)
            if gpu is not None:
                yield gpu

    def _power(self) -> float | None:
        packages = [path for path in RAPL.glob("intel-rapl:*") if path.name.count(":") == 1]
        if not packages:
            return None
        now = Energy(sum(int((path / "energy_uj").read_text()) for path in packages), time.monotonic())
        before, self._energy = self._energy, now
        if before is None or now.at <= before.at or now.micro_j < before.micro_j:  # counters wrap
            return None
        return (now.micro_j - before.micro_j) / 1e6 / (now.at - before.at)


def _cpu_temperature() -> float | None:
    sensors: dict[str, Any] = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    name = next((name for name in CPU_SENSORS if sensors.get(name)), None)
    # Virtual machines and broken sensors say 0 or nonsense.
    return max((s.current for s in sensors[name] if 0 < s.current < 150), default=None) if name else None


def _on_battery() -> bool | None:
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return None if battery is None or battery.power_plugged is None else not battery.power_plugged


def _process() -> ProcessVitals:
    me = psutil.Process()
    with me.oneshot():
        memory_bytes, started = me.memory_info().rss, me.create_time()
    children = me.children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.Error):  # it may have ended since
            memory_bytes += child.memory_info().rss
    return ProcessVitals(memory_bytes, 1 + len(children), max(0.0, time.time() - started))


def _gpu(index: int) -> GpuVitals | None:
    handle = _read(lambda: pynvml.nvmlDeviceGetHandleByIndex(index))
    if handle is None:
        return None
    name = _read(lambda: pynvml.nvmlDeviceGetName(handle))
    memory = _read(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
    use = _read(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle))
    temperature = _read(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
    power_mw = _read(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))
    return GpuVitals(
        name=name.decode() if isinstance(name, bytes) else str(name or "GPU"),
        used_percent=None if use is None else float(use.gpu),
        memory_used_bytes=None if memory is None else int(memory.used),
        memory_bytes=None if memory is None else int(memory.total),
        temperature_c=None if temperature is None else float(temperature),
        power_w=None if power_mw is None else power_mw / 1000,
    )


def _read(source: Callable[[], T]) -> T | None:
    """What `source` says, or None when the system doesn't let itself be asked."""
    try:
        return source()
    except (OSError, ValueError, RuntimeError, AttributeError, NotImplementedError, psutil.Error, pynvml.NVMLError):
        return None
