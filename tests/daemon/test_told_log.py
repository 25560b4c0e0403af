"""What is told of attempts after a restart of their node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tiermesh.adapters.store import Store
from tiermesh.core.attempts import PREPARING, Told
from tiermesh.core.jobs import JobId
from tiermesh.daemon.told import Key
from tiermesh.daemon.told_log import ToldLog
from tiermesh.types import Ballot, NodeId

KEY: Key = (JobId("01J00000000000000000000000"), (1, Ballot(3, NodeId("b" * 32))))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store(tmp_path, "test")
    await opened.open()
    yield opened
    await opened.close()


async def after_a_restart(store: Store, told: Told) -> Told:
    before = ToldLog(store)
    await before.open()
    await before.keep(KEY, told)
    after = ToldLog(store)
    await after.open()
    found = after.told(KEY)
    assert found is not None
    return found


@pytest.mark.parametrize("phase", [PREPARING, "train"])
async def test_an_attempt_that_ran_has_stopped_and_its_node_refuses_nothing(store: Store, phase: str) -> None:
    """A node that refused is not asked again for a while, and the job goes on elsewhere, without its checkpoints."""
    found = await after_a_restart(store, Told(seq=5, state="running", phase=phase, step=7))
    assert (found.state, found.reason, found.step) == ("stopped", "its node ended", 7)
    assert found.phase != PREPARING
    assert found.seq > 5


async def test_an_end_stays_as_it_was(store: Store) -> None:
    told = Told(seq=5, state="failed", phase="train", failure="diverged", reason="the loss jumped")
    assert await after_a_restart(store, told) == told
