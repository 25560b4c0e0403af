"""Runs that this process puts together from their folders, as a worker does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tiermesh.kernel.training.assembly import assemble, ready
from tiermesh.kernel.training.events import Events
from tiermesh.kernel.training.memory import Memory, Usage
from tiermesh.kernel.training.orders import Orders
from tiermesh.kernel.training.run import Run
from tiermesh.protocol.run_folder import RunFolder
from tiermesh.protocol.training_events import TrainingEvent


@contextmanager
def assembled(folder: RunFolder) -> Iterator[tuple[Run, list[TrainingEvent]]]:
    """The run of a folder, ready to go, and the list where its events will be; memory is never short."""
    events, told = Events(folder.events), list[TrainingEvent]()
    events.listen(told.append)
    try:
        parts = assemble(folder, folder.read_plan(), events.say)
        run = ready(parts, events, Orders(folder.path), Memory(None, parts.trainee.device))
        run.look = lambda: Usage(1 << 30, 100 << 30, 0.01)
        yield run, told
    finally:
        events.close()
