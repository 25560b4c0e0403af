"""Two ways in which a run goes wrong without an error: it stands still, or the machine gets too hot.

Standing still. Everything that a run tells is a sign of life, and so is each micro-batch: an evaluation of a slow model
takes longer than many steps. When nothing came for many times the usual time of a
step, the main thread hangs in a library, where no exception reaches it: the stacks are written down, the failure is
told, and the process ends; the newest checkpoint is what a new one goes on from.

Heat. Above `HOT_C` for some looks in a row the run pauses between two steps until it is `COOL_C`; when that does not
happen for a long time, somebody has to look after the machine.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

import psutil
import pynvml

from tiermesh.errors import Overheated, Stalled
from tiermesh.protocol.training_events import Continued, Paused, Phase, StepDone, TrainingEvent

STALL_TIMES = 20
"""Usual times of a step without a sign of life; an evaluation or a save tells something more often than that."""
MIN_STALL_S = 300.0
"""A busy machine, or one that swaps, may well stand still for a minute or two."""
FIRST_STALL_S = 3600.0
"""Until the first step nothing is usual: a compiler or a slow disk may take long."""
LOOK_S = 1.0
FROZEN_S = 30.0
"""A thread that itself was not run for so long was stopped with all the rest; that is not the run's fault."""
REMEMBERED_STEPS = 31
SAVE_STALL_S = 3600.0
"""While a checkpoint is written: a whole model to a slow disk that others use takes many minutes, in one call that can
tell nothing meanwhile, and a disk that hangs is seen after this."""

HOT_C = {"cpu": 97.0, "gpu": 90.0}
COOL_C = {"cpu": 87.0, "gpu": 80.0}
"""Processors slow themselves down just below `HOT_C`, at which they may stay for ever; this is for when that fails."""
HOT_LOOKS = 3
HEAT_LOOK_S = 5.0
TOO_LONG_S = 15 * 60.0

CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")


class Watchdog:
    """Hears all events and ends the process when they stop. `on_stall` is called once, on the watching thread."""

    def __init__(self, on_stall: Callable[[Stalled], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._on_stall = on_stall
        self._clock = clock
        self._last = clock()
        self._last_step: float | None = None
        self._intervals: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        self._paused = self._saving = False
        self._ended = threading.Event()

    def start(self) -> None:
        """From now on until `end`."""
        self._last = self._clock()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def end(self) -> None:
        """What follows the steps has no usual time."""
        self._ended.set()

    def alive(self) -> None:
        """Work goes on, within a step or an evaluation, that nothing is told of."""
        self._last = self._clock()

    def hear(self, event: TrainingEvent) -> None:
        """A listener of the run's events."""
        self._last = self._clock()
        match event:
            case StepDone():
                if self._last_step is not None:
                    self._intervals.append(self._last - self._last_step)
                self._last_step = self._last
            case Phase(phase="save"):
                self._saving = event.state == "started"
            case Paused():
                self._paused = True
            case Continued():
                self._paused = False

    def overdue(self) -> float | None:
        """Seconds without a sign of life when that is too long, else None."""
        silence = self._clock() - self._last
        return silence if not self._paused and silence > self._patience_s() else None

    def _patience_s(self) -> float:
        if not self._intervals:
            return FIRST_STALL_S
        usual = max(MIN_STALL_S, STALL_TIMES * statistics.median(self._intervals))
        return max(usual, SAVE_STALL_S) if self._saving else usual

    def _watch(self) -> None:
        looked = self._clock()
        while not self._ended.wait(LOOK_S):
            now = self._clock()
            if now - looked > FROZEN_S:
                self._last += now - looked
            looked = now
            silence = self.overdue()
            if silence is not None:
                self._on_stall(Stalled(f"nothing happened for {silence:.0f} s: a step usually takes {self._usual()}"))
                return

    def _usual(self) -> str:
        usual = f"{statistics.median(self._intervals):.1f} s" if self._intervals else "less than an hour"
        return f"{usual}, and a checkpoint is being saved" if self._saving else usual


class Thermostat:
    """Whether to go on, as temperatures are told to it. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._hot_looks = 0
        self._paused_at: float | None = None

    def judge(self, now: float, celsius: dict[str, float]) -> Literal["go", "pause"]:
        """Raises `Overheated` when a pause did not help for `TOO_LONG_S`."""
        if self._paused_at is None:
            hot = any(celsius[kind] >= HOT_C[kind] for kind in celsius)
            self._hot_looks = self._hot_looks + 1 if hot else 0
            if self._hot_looks >= HOT_LOOKS:
                self._paused_at = now
        elif all(celsius[kind] <= COOL_C[kind] for kind in celsius):
            self._paused_at, self._hot_looks = None, 0
        elif now - self._paused_at >= TOO_LONG_S:
            told = ", ".join(f"{kind.upper()} {value:.0f} °C" for kind, value in sorted(celsius.items()))
            raise Overheated(f"still too hot after {TOO_LONG_S / 60:.0f} minutes of rest ({told})")
        return "go" if self._paused_at is None else "pause"


class Heat:
    """The temperature of this machine, looked at now and then between steps."""

    def __init__(
        self,
        read: Callable[[], dict[str, float]] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read or temperatures
        self._clock = clock
        self._thermostat = Thermostat()
        self._next = 0.0
        self._last: Literal["go", "pause"] = "go"

    def is_too_hot(self) -> bool:
        """Cheap: most calls do not look. Raises `Overheated`."""
        now = self._clock()
        if now >= self._next:
            self._next = now + HEAT_LOOK_S
            self._last = self._thermostat.judge(now, self._read())
        return self._last == "pause"


def temperatures() -> dict[str, float]:
    """Degrees Celsius of the hottest `cpu` and `gpu`; without those that can't be read."""
    found = {}
    try:
        sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
        name = next(name for name in CPU_SENSORS if sensors.get(name))
        found["cpu"] = max(one.current for one in sensors[name] if 0 < one.current < 150)
    except (OSError, ValueError, StopIteration, RuntimeError):
        pass
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        kind = pynvml.NVML_TEMPERATURE_GPU
        found["gpu"] = max(float(pynvml.nvmlDeviceGetTemperature(handle, kind)) for handle in handles)
    except (pynvml.NVMLError, ValueError):
        pass
    return found
