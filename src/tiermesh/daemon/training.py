"""Training on this node, put together: data, slot, jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from tiermesh.adapters.data_shelf import DataShelf
from tiermesh.adapters.store import Store
from tiermesh.config import DaemonOptions
from tiermesh.daemon.attempts import Attempts
from tiermesh.daemon.jobs import Jobs
from tiermesh.daemon.supervisor import Supervisor
from tiermesh.hardware.memory import read_memory
from tiermesh.protocol.jobs import AttemptReport
from tiermesh.types import Ballot

LEFTOVER_S = 6.0
"""Workers of an earlier daemon save and end within 5 s of its death."""


class TrainingRoom:
    """`open` when the store is; `close` before it. `ballot` is the one that this node obeys."""

    def __init__(
        self,
        options: DaemonOptions,
        store: Store,
        *,
        ballot: Callable[[], Ballot],
        ending: Callable[[], bool],
        on_training: Callable[[str], None],
    ) -> None:
        self.ending = ending
        """Is this daemon about to end? Whoever follows a job must let go."""
        self.shelf = DataShelf(options.state_dir / "data")
        self._supervisor = Supervisor(options.state_dir, "trainers.json")
        self.attempts = Attempts(
            folder=options.state_dir / "jobs",
            shelf=self.shelf,
            models=_served(model.name for model in options.models),
            promised=ballot,
            memory=read_memory,
            supervise=self._supervisor.listing,
            on_change=self._heard,
        )
        self.jobs = Jobs(
            node=options.name,
            store=store,
            shelf=self.shelf,
            attempts=self.attempts,
            ballot=ballot,
            on_training=on_training,
        )

    async def open(self) -> None:
        """Take up what an earlier daemon left, once its workers are gone."""
        self.shelf.open()
        await self.jobs.open()
        self.jobs.start(self._supervisor.outlast(LEFTOVER_S))

    def _heard(self, report: AttemptReport) -> None:
        self.jobs.heard(report)

    async def close(self) -> None:
        """Stop after a checkpoint. May be called without `open`."""
        await self.jobs.close()


def _served(models: Iterable[str]) -> dict[str, str]:
    """Models by the names that they are served under: a folder's own name, or that of the catalogue."""
    folders = {name: Path(name).expanduser() for name in models}
    return {path.resolve().name if path.is_dir() else name: name for name, path in folders.items()}
