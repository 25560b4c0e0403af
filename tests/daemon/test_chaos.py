"""A minute of chaos; `scripts/chaos` has the longer forms."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
from benchmarks.chaos.storm import run

SECONDS = 25.0
SEED = 20261122


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_nothing_is_lost_nothing_hangs_and_every_failure_is_explicit() -> None:
    outcome = await run(SECONDS, SEED)
    report = "\n".join([f"seed {SEED}", outcome.told, *outcome.journal.lines])
    print(report)
    assert not outcome.verdict.violations, report
    assert not outcome.left_over, report
    assert sum(outcome.journal.counts.values()) >= 10, report
    assert outcome.verdict.share_whole("tiny") >= 0.8, report
