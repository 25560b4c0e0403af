"""What `core.relief` decides, done to a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from tiermesh.core.relief import SHARES, Action, Level, Possible, Taken, next_action, tightened
from tiermesh.kernel.training.failures import is_out_of_memory
from tiermesh.kernel.training.offload import MIN_SPARED_SHARE, MappedState, offload, state_bytes
from tiermesh.kernel.training.optimizers import close_state, open_state
from tiermesh.protocol.training_events import Relieved, Warned

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from tiermesh.kernel.training.guard import LastGood
    from tiermesh.kernel.training.memory import Usage
    from tiermesh.kernel.training.models import Trainee
    from tiermesh.protocol.training import TrainingSpec
    from tiermesh.protocol.training_events import TrainingEvent

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Relieving:
    """How small a run has become. `folder` is where the optimizer's state may be kept out of memory, `last_good` the
    copies in memory; `look` tells how much is used, `trim` gives what is freed back to the system."""

    spec: TrainingSpec
    trainee: Trainee
    optimizer: torch.optim.Optimizer
    last_good: LastGood
    folder: Path
    look: Callable[[], Usage]
    trim: Callable[[], None]
    say: Callable[[TrainingEvent], None]
    taken: Taken = field(default_factory=Taken)
    _mapped: MappedState | None = None
    _was_watchful: bool = False

    @property
    def micro_batch(self) -> int:
        """Rows computed at once, by now."""
        return self.taken.split(self.spec.micro_batch_size, self.spec.gradient_accumulation_steps)[0]

    def open_state(self, step: int) -> None:
        """Make now what the optimizer keeps, where that is known: within its first step a refusal would find some
        weights changed. What memory has no room for is made in a file."""
        try:
            open_state(self.optimizer)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            close_state(self.optimizer)
            if not open_state(self.optimizer, thin=True):
                raise
        else:
            return
        self.taken = self.taken.after(Action.OFFLOAD, step)
        self.apply()
        self._tell(Level.CRITICAL, None, Action.OFFLOAD, step)

    def retried(self, work: Callable[[], T], step: int) -> T:
        """Do what changes no weight, again as often as memory must be relieved for it."""
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                refused = refusal(error)
            self.after_refusal(refused, step)

    def after_refusal(self, refused: Exception, step: int) -> None:
        """Become smaller. Raises `refused` when that can't be."""
        self.optimizer.zero_grad(set_to_none=True)
        if not self._relieve(Level.CRITICAL, None, step, refused=True):
            raise refused

    def look_after(self, step: int) -> None:
        """After each step: do what is to be done at this level, if anything."""
        usage = self.look()
        if usage.level is Level.WATCHFUL and not self._was_watchful:
            self._was_watchful = True
            self.say(Warned(message=_told_of(usage)))
        self._relieve(usage.level, usage.share, step)

    def tighten(self, step: int) -> None:
        """One more step of the ladder, if there is one: the system killed the process for its memory."""
        taken = tightened(self.taken, self._possible(), step=step)
        if taken is not None:
            self.taken = taken
            self.apply()

    def apply(self) -> None:
        """Be as small as `taken` says; call it again when the optimizer's state was put back."""
        if self.taken.forgotten:
            self.last_good.allowed = False
            self.last_good.forget()
        if self.taken.checkpointing:
            self.trainee.checkpoint(on=True)
        if self.taken.offloaded:
            if self._mapped is not None:
                self._mapped.close()
            self._mapped = offload(self.optimizer, self.folder)

    def _relieve(self, level: Level, share: float | None, step: int, *, refused: bool = False) -> bool:
        """False: there was nothing to be done."""
        action = next_action(level, self.taken, self._possible(), step=step, refused=refused)
        if action is None:
            return False
        self.taken = self.taken.after(action, step)
        self.apply()
        self._tell(level, share, action, step)
        return True

    def _tell(self, level: Level, share: float | None, action: Action, step: int) -> None:
        self.trim()
        self.say(
            Relieved(
                step=step,
                level=level.name.lower(),
                pressure=share,
                action=action.value,
                micro_batch_size=self.micro_batch,
                checkpointing=self.trainee.checkpointing,
            )
        )

    def _possible(self) -> Possible:
        worth_bytes = MIN_SPARED_SHARE * self.look().limit_bytes
        return Possible(
            micro_batch=self.spec.micro_batch_size,
            checkpointing=self.spec.checkpointing == "auto" and not self.trainee.checkpointing,
            offload=state_bytes(self.optimizer) > worth_bytes,
            forget=self.last_good.size_bytes > worth_bytes,
        )


def _told_of(usage: Usage) -> str:
    return (
        f"memory: {usage.share:.0%} of what may be used is taken; from {SHARES[Level.HIGH]:.0%} on the run gives back "
        f"what is free, from {SHARES[Level.SEVERE]:.0%} on it computes fewer rows at once"
    )


def refusal(error: Exception) -> Exception:
    """`error` without the stack that it holds, which is full of tensors. Raises it when it is none of memory."""
    if not is_out_of_memory(error):
        raise error
    error.__traceback__ = None
    return error
