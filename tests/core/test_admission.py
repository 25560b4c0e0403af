"""What can't fit is refused in words; what is unknown is no reason to refuse."""

from __future__ import annotations

import pytest

from tiermesh.core.admission import GIB, RUNTIME_BYTES, Judgement, Machine, judge_free, judge_memory, least_bytes

ROWS = [
    (2 * GIB, Machine(8 * GIB, 4 * GIB), None, "fits", ""),
    (2 * GIB, Machine(8 * GIB, 2 * GIB), 2 * GIB, "fits", ""),
    (2 * GIB, Machine(8 * GIB, GIB), None, "wait", "needs at least 2.0 GiB, and 1.0 GiB are free now"),
    (9 * GIB, Machine(8 * GIB, GIB), None, "never", "needs at least 9.0 GiB, and this machine has 8.0 GiB"),
    (3 * GIB, Machine(8 * GIB, 8 * GIB), 2 * GIB, "never", "needs at least 3.0 GiB, and memory_limit is 2.0 GiB"),
    (99 * GIB, Machine(None, None), None, "fits", ""),
]


@pytest.mark.parametrize(("needed", "machine", "limit", "verdict", "reason"), ROWS)
def test_memory(needed: int, machine: Machine, limit: int | None, verdict: str, reason: str) -> None:
    judgement = judge_memory(needed, machine, limit)
    assert (judgement.verdict, judgement.reason) == (verdict, reason)


def test_what_is_trained_weighs_most() -> None:
    billion = 10**9
    qlora, lora, full = (least_bytes(billion, method) for method in ("qlora", "lora", "full_finetune"))
    assert RUNTIME_BYTES < qlora < lora < full == RUNTIME_BYTES + 16 * billion


@pytest.mark.parametrize(
    ("needed", "machine", "judgement"),
    [
        (9 * GIB, Machine(16 * GIB, 10 * GIB), Judgement("fits")),
        (
            9 * GIB + 1,
            Machine(16 * GIB, 10 * GIB),
            "needs about 9.0 GiB, and 9.0 GiB are free now, besides the reserve",
        ),
        (9 * GIB, Machine(16 * GIB, 2 * GIB), "needs about 9.0 GiB, and 1.8 GiB are free now, besides the reserve"),
        (9 * GIB, Machine(8 * GIB, 2 * GIB), "needs about 9.0 GiB, and 1.8 GiB are free now, besides the reserve"),
        (99 * GIB, Machine(16 * GIB, None), Judgement("fits")),
    ],
)
def test_what_an_estimate_says_must_be_free_with_a_reserve_and_is_never_refused_for_good(
    needed: int, machine: Machine, judgement: Judgement | str
) -> None:
    wanted = Judgement("wait", judgement) if isinstance(judgement, str) else judgement
    assert judge_free(needed, machine) == wanted
