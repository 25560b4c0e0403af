"""Our worker as the launcher starts it, at our own pace: a contender.

    python -m benchmarks.training.ours RUN_FOLDER --threads N

The same process with the same loop; only what happens after a step's event waits for its turn, and what stands for the
guard is timed. It keeps its priority, as the others do.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.training.turns import Turns
from tiermesh.kernel import lifeline
from tiermesh.kernel.inference.threads import environment
from tiermesh.protocol.training_events import ModelReady, Phase, StepDone, TrainingEvent


class Guarded:
    """Seconds spent in the parts that guard a step: norm and finiteness of the gradient, the spike detector, copies of
    the last good state."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same, and timed."""

        def measured(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*given, **named)
            finally:
                self.seconds += time.perf_counter() - began

        return measured


class Pace:
    """Hears what the worker tells."""

    def __init__(self, guarded: Guarded) -> None:
        self._turns, self._guarded = Turns(), guarded
        self._tokens, self._guard_s, self._data_from, self._precision = 0, 0.0, 0.0, ""

    def hear(self, event: TrainingEvent) -> None:
        """Wait before the first step and after each."""
        match event:
            case ModelReady():
                self._precision = event.precision
            case Phase(phase="data", state="started", done=0):
                self._data_from = event.at
            case Phase(phase="train", state="started"):
                self._turns.wait(prepared_s=event.at - self._data_from, precision=self._precision)
            case StepDone():
                tokens, self._tokens = event.tokens - self._tokens, event.tokens
                guard_s, self._guard_s = self._guarded.seconds - self._guard_s, self._guarded.seconds
                self._turns.wait(tokens=tokens, loss=event.loss, guard_s=guard_s, memory_bytes=event.memory_bytes)


def main() -> None:
    """Become the worker."""
    # Waiting for a turn is no standstill, and a lower priority than the others' would be no comparison.
    lifeline.yield_to_daemon = lambda: None
    # As the worker does, which would be late here: torch is imported before it begins.
    threads = int(sys.argv[sys.argv.index("--threads") + 1])
    os.environ.update(environment(threads))

    from tiermesh.kernel.training import __main__ as worker
    from tiermesh.kernel.training import events, guard, keeping, run, watchdog

    guarded = Guarded()
    pace = Pace(guarded)

    class Paced(events.Events):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.listen(pace.hear)

    events.Events = Paced  # type: ignore[misc]
    watchdog.MIN_STALL_S = math.inf
    guard.gradient_norm = guarded.timed(guard.gradient_norm)
    run.Run._judge = guarded.timed(run.Run._judge)  # type: ignore[method-assign]  # noqa: SLF001
    keeping.Keeping.offer = guarded.timed(keeping.Keeping.offer)  # type: ignore[method-assign]
    worker.main()


if __name__ == "__main__":
    main()
