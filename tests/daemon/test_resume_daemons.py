"""Real daemons, real workers: a machine dies while it answers, and no reader notices.

The short form of what `scripts/bench_failover` measures.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

pytest.importorskip("torch")
from benchmarks.failover import seams
from benchmarks.failover.trials import (
    STREAMS,
    Fault,
    Served,
    Survived,
    coordinator_lost,
    questions,
    serving,
    sixteen_streams,
    undisturbed,
)
from tests import tiny_model

pytestmark = [pytest.mark.timeout(500), pytest.mark.asyncio(loop_scope="module")]

ASKED = questions(STREAMS)
TOKENS = 300
STEADY_S = 6.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """In fp32, where answers are the same whatever else is computed."""
    folder = tmp_path_factory.mktemp("fp32")
    async with serving(folder, str(tiny_model.build_folder(folder / "tiny")), "fp32") as mesh:
        yield mesh


@pytest.mark.parametrize("fault", ["SIGKILL", "SIGSTOP"])
async def test_sixteen_streams_survive_their_machine(served: Served, fault: Fault) -> None:
    """Killed or frozen: every text equals the undisturbed one, figures are exact, and nobody is told."""
    alone = await undisturbed(served, ASKED, TOKENS)
    survived = await sixteen_streams(served, ASKED, TOKENS, fault)
    _assert_unnoticed(survived)
    assert [heard.text for heard in survived.heard] == [heard.text for heard in alone]
    print(f"{fault}: {survived.moved} moved, longest pause {survived.pause_s:.2f} s")


async def test_the_coordinators_death_pauses_nobody(served: Served) -> None:
    """For more than a second; where other programs make answers wait anyhow, for a second more than that. These come
    and go: so it has three tries."""
    for _ in range(3):
        lost = await coordinator_lost(served, STEADY_S)
        print(f"{lost.requests} requests, longest pause {lost.pause_s:.2f} s, {lost.before_s:.2f} s before")
        assert lost.failures == []
        assert lost.served_by_it > 0, "it worked, too"
        if lost.pause_s <= lost.before_s + 1.0:
            break
    assert lost.pause_s <= lost.before_s + 1.0


@pytest.mark.long
async def test_a_seam_in_bf16_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """There the answer may differ from the undisturbed one; every token must still follow from those before."""
    model = tiny_model.build_folder(tmp_path / "tiny")
    async with serving(tmp_path, str(model), "bf16") as mesh:
        survived = await sixteen_streams(mesh, ASKED, TOKENS, "SIGKILL")
    _assert_unnoticed(survived)
    judged = await seams.judge(model, ASKED, survived.heard, survived.cuts, tmp_path / "judge.log")
    print(judged)
    assert judged.clean, judged


def _assert_unnoticed(survived: Survived) -> None:
    assert survived.moved > 0
    assert [heard.error for heard in survived.heard] == [None] * STREAMS
    assert all(heard.whole and heard.reason == "length" for heard in survived.heard)
    assert [heard.told for heard in survived.heard] == [TOKENS] * STREAMS
