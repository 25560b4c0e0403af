"""The states that a run may go back to or go on from: the last good one in memory, checkpoints on disk.

A state is good when `PATIENCE` ordinary steps in a row were made of it: what an update has broken is seen by the next
step, so one that was saved right after its update, or after a suspect step, is not known to be good yet. How far the
good ones go is one number, which each checkpoint holds: a run that is taken up knows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiermesh.core.spikes import PATIENCE
from tiermesh.kernel.training import guard
from tiermesh.kernel.training.failures import is_out_of_memory
from tiermesh.kernel.training.state import capture, restore
from tiermesh.protocol.training_events import CheckpointSaved, Phase

if TYPE_CHECKING:
    import torch

    from tiermesh.kernel.training.checkpoints import Checkpoints, Snapshot
    from tiermesh.kernel.training.models import Trainee
    from tiermesh.kernel.training.progress import Progress
    from tiermesh.protocol.training_events import TrainingEvent

QUICK_S = 1.0
"""A save that takes no longer is made whenever there is a reason."""
BEST_SHARE = 0.1
"""Of the time at most goes into saves that are made only because a state is the best until now."""


@dataclass(slots=True, kw_only=True)
class Keeping:
    """Of one run. `facts` tells what it is besides its tensors, as of now."""

    trainee: Trainee
    optimizer: torch.optim.Optimizer
    checkpoints: Checkpoints
    facts: Callable[[], Mapping[str, Any]]
    say: Callable[[TrainingEvent], None]
    last_good: guard.LastGood
    good_until: int = 0
    """States until this step are good. The one before the first step is: no update has touched it."""
    _save_s: float = 0.0
    """What the last save took."""
    _save_ended: float = 0.0
    _ordinary: int = 0
    """Steps of that kind in a row, until now."""
    _saved: tuple[int, int | None] | None = None
    """Of the state on disk that this run would find: its step, and when it had been evaluated."""

    def save(self, progress: Progress) -> None:
        """Write a checkpoint, unless there is one of this very state."""
        if self._saved == _state_of(progress):
            return
        began = time.monotonic()
        self.say(Phase(phase="save", state="started"))
        path = self.checkpoints.save(self._snapshot(progress, copy=False), good_until=self.good_until)
        self._saved = _state_of(progress)
        size = sum(file.stat().st_size for file in path.iterdir())
        self._save_ended = time.monotonic()
        self._save_s = self._save_ended - began
        self.say(CheckpointSaved(step=progress.step, name=path.name, seconds=self._save_s, size_bytes=size))
        self.say(Phase(phase="save", state="completed"))

    def is_cheap(self) -> bool:
        """Whether one more save now keeps within `BEST_SHARE` of the time, as far as the last one tells."""
        return self._save_s <= QUICK_S or time.monotonic() - self._save_ended >= self._save_s / BEST_SHARE

    def taken_up(self, progress: Progress, good_until: int) -> None:
        """The run is what is on disk."""
        self._saved = _state_of(progress)
        self.good_until, self._ordinary = good_until, 0

    def after_step(self, progress: Progress) -> None:
        """It was an ordinary one."""
        self.last_good.after_step()
        self._ordinary += 1
        if self._ordinary < PATIENCE:
            return
        before, self.good_until = self.good_until, max(self.good_until, progress.step - PATIENCE)
        if self._saved is not None and before < self._saved[0] <= self.good_until:
            self.checkpoints.prune(self.good_until)

    def doubted(self) -> None:
        """A step was not ordinary; its update was withheld."""
        self.last_good.doubted()
        self._ordinary = 0

    def offer(self, progress: Progress) -> None:
        """Keep a copy in memory, if it is time for one and there is room: without it the way back is the disk's."""
        if not self.last_good.wanted(progress.step) or self._state_bytes() > guard.IN_MEMORY_BYTES:
            return
        try:
            self.last_good.offer(self._snapshot(progress, copy=True))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.last_good.allowed = False  # there will be less room, not more

    def good(self) -> Snapshot | None:
        """What was proven by the steps that followed. Where there is no such state, the checkpoint before the newest,
        or else the newest: it is in doubt, but all that there is."""
        found = self.last_good.good or self.checkpoints.newest_until(self.good_until)
        if found is None and (last := self.checkpoints.last_step()) is not None:
            found = self.checkpoints.newest_until(last - 1) or self.checkpoints.newest()
        return found

    def newest(self) -> Snapshot | None:
        """As `good`, or newer: for when the weights are not in doubt."""
        return self.last_good.latest or self.checkpoints.newest()

    def return_to(self, snapshot: Snapshot) -> None:
        """Put it back, and forget all that came after it, as a run that is taken up there would know nothing of it."""
        restore(snapshot, self.trainee.trainables, self.optimizer)
        self.checkpoints.forget_after(snapshot.step)
        self.last_good.forget()
        self._saved = None
        self.went_back(snapshot.step)

    def went_back(self, step: int) -> None:
        """The run takes the steps from here on again."""
        self.good_until, self._ordinary = min(self.good_until, step), 0

    def _state_bytes(self) -> int:
        """Masters, and two figures for each, which is what most optimizers keep."""
        return 3 * sum(one.numel() * one.element_size() for one in self.trainee.trainables.values())

    def _snapshot(self, progress: Progress, *, copy: bool) -> Snapshot:
        return capture(
            self.trainee.trainables,
            self.optimizer,
            step=progress.step,
            position=progress.position,
            loss=progress.held_out if progress.evaluated_at == progress.step else None,
            facts=self.facts(),
            copy=copy,
        )


def _state_of(progress: Progress) -> tuple[int, int | None]:
    return progress.step, progress.evaluated_at
