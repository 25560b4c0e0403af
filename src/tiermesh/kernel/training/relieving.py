"""What `core.relief` decides, done to a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tiermesh.core.relief import Level, Possible, Taken, next_action, tightened
from tiermesh.kernel.training.offload import MIN_SPARED_SHARE, MappedState, offload, state_bytes
from tiermesh.protocol.training_events import Relieved

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from tiermesh.kernel.training.models import Trainee
    from tiermesh.protocol.training import TrainingSpec


@dataclass(slots=True, kw_only=True)
class Relieving:
    """How small a run has become. `folder` is where the optimizer's state may be kept out of memory."""

    spec: TrainingSpec
    trainee: Trainee
    folder: Path
    taken: Taken = field(default_factory=Taken)
    _mapped: MappedState | None = None

    @property
    def micro_batch(self) -> int:
        """Rows computed at once, by now."""
        return self.taken.split(self.spec.micro_batch_size, self.spec.gradient_accumulation_steps)[0]

    def take(
        self,
        level: Level,
        share: float | None,
        optimizer: torch.optim.Optimizer,
        limit_bytes: int,
        *,
        step: int,
        refused: bool,
    ) -> Relieved | None:
        """Do what is to be done at this level, which is this share of the limit; None: nothing was."""
        action = next_action(level, self.taken, self._possible(optimizer, limit_bytes), step=step, refused=refused)
        if action is None:
            return None
        self.taken = self.taken.after(action, step)
        self.apply(optimizer)
        return Relieved(
            step=step,
            level=level.name.lower(),
            pressure=share,
            action=action.value,
            micro_batch_size=self.micro_batch,
            checkpointing=self.trainee.checkpointing,
        )

    def tighten(self, optimizer: torch.optim.Optimizer, limit_bytes: int, *, step: int) -> None:
        """One more step of the ladder, if there is one."""
        taken = tightened(self.taken, self._possible(optimizer, limit_bytes), step=step)
        if taken is not None:
            self.taken = taken
            self.apply(optimizer)

    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        """Be as small as `taken` says; call it again when the optimizer's state was put back."""
        if self.taken.checkpointing:
            self.trainee.checkpoint(on=True)
        if self.taken.offloaded:
            if self._mapped is not None:
                self._mapped.close()
            self._mapped = offload(optimizer, self.folder)

    def _possible(self, optimizer: torch.optim.Optimizer, limit_bytes: int) -> Possible:
        return Possible(
            micro_batch=self.spec.micro_batch_size,
            checkpointing=self.spec.checkpointing == "auto" and not self.trainee.checkpointing,
            offload=state_bytes(optimizer) > MIN_SPARED_SHARE * limit_bytes,
        )
