"""The judge of a flood of jobs: what must fail does."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.jobs.verdicts import ACCEPTED_S, ENDED_S, Flood, judge, table


def flood(**changed: Any) -> Flood:
    good: dict[str, Any] = {
        "jobs": 3, "clients": 2, "nodes": 2, "accepted_s": [0.1, 0.2, 0.3], "ended_s": 60.0,
        "states": ["completed"] * 3, "results": [1, 1, 1], "attempts": 4,
        "prompts_s": [0.1, 0.2, 0.3], "quiet_s": [0.1, 0.1],
    }  # fmt: skip
    return Flood(**good | changed)


@pytest.mark.parametrize(
    ("changed", "failed"),
    [
        ({}, []),
        ({"accepted_s": [0.1, 0.2]}, [0]),
        ({"accepted_s": [0.1, 0.2, ACCEPTED_S + 0.1]}, [0]),
        ({"accepted_s": [], "refused": ["HTTP 503"] * 3}, [0]),
        ({"ended_s": ENDED_S + 1}, [1]),
        ({"ended_s": None}, [1]),
        ({"states": ["completed", "completed", "failed"], "results": [1, 1, 0]}, [1, 2]),
        ({"states": ["completed", "completed"]}, [1]),
        ({"results": [1, 2, 1]}, [2]),
        ({"results": [1, 1]}, [2]),
        ({"prompts_failed": ["TimeoutError"]}, [3]),
        ({"prompts_s": []}, [3]),
    ],
)
def test_each_row_fails_for_its_own_reason(changed: dict[str, Any], failed: list[int]) -> None:
    rows = judge(flood(**changed))
    assert [at for at, row in enumerate(rows) if not row.holds] == failed
    assert table(rows).count("FAILED") == len(failed)


def test_the_table_says_what_was_found() -> None:
    told = table(judge(flood()))
    assert "| 3 jobs from 2 clients accepted | all, ≤ 10 s | 3 in 0.3 s | ok |" in told
    assert "3 answered, 0 not; p50 0.20 s, p95 0.29 s, max 0.30 s" in told
