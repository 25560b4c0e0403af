"""How a step's work is shared out."""

from __future__ import annotations

import pytest

from tiermesh.kernel.inference.schedule import CALL_COST_KEYS, FairShare, group_neighbours, share_prefill


@pytest.mark.parametrize(
    ("remaining", "budget", "shares"),
    [
        ([], 128, []),
        ([1000], 128, [128]),
        ([30], 128, [30]),
        ([1000, 1000], 128, [64, 64]),
        ([1000, 20], 128, [108, 20]),
        ([20, 1000, 500], 128, [20, 54, 54]),
        ([1000, 1000], 0, [0, 0]),
    ],
)
def test_prompts_share_equally_and_what_short_ones_leave_goes_to_the_long(
    remaining: list[int], budget: int, shares: list[int]
) -> None:
    assert share_prefill(remaining, budget) == shares


@pytest.mark.parametrize(
    ("slots", "lengths", "groups"),
    [
        ([], [], []),
        ([3], [100], [range(1)]),
        ([0, 1, 2], [100, 120, 110], [range(3)]),
        ([0, 2, 3], [100, 100, 100], [range(1), range(1, 3)]),
        ([0, 1, 2], [100, 100, 101 + CALL_COST_KEYS], [range(2), range(2, 3)]),
        ([0, 1], [100 + CALL_COST_KEYS, 100], [range(2)]),
        ([0, 1], [101 + CALL_COST_KEYS, 100], [range(1), range(1, 2)]),
    ],
)
def test_neighbours_are_computed_together_unless_padding_costs_more_than_a_call(
    slots: list[int], lengths: list[int], groups: list[range]
) -> None:
    assert group_neighbours(slots, lengths) == groups


@pytest.mark.parametrize("prefill_s", [0.03, 0.1, 1.0])
def test_a_long_prompt_takes_half_of_the_pace_of_those_who_generate_at_most(prefill_s: float) -> None:
    step_s = 0.03
    share = FairShare()
    share.stepped(step_s, prefilled=False, generated=True)
    clock, tokens = 0.0, 0
    for _ in range(2000):
        prefilled = share.may_prefill
        duration = prefill_s if prefilled else step_s
        share.stepped(duration, prefilled=prefilled, generated=True)
        clock += duration
        tokens += 1
    assert tokens / clock >= 0.5 / step_s * 0.95


def test_a_prompt_is_never_starved() -> None:
    share = FairShare()
    share.stepped(0.03, prefilled=False, generated=True)
    share.stepped(1.0, prefilled=True, generated=True)
    waited = 0
    while not share.may_prefill:
        share.stepped(0.03, prefilled=False, generated=True)
        waited += 1
    assert waited <= 1.0 / 0.03


def test_with_nobody_generating_there_is_nobody_to_wait_for() -> None:
    share = FairShare()
    share.stepped(1.0, prefilled=True, generated=True)
    assert not share.may_prefill
    share.stepped(1.0, prefilled=True, generated=False)
    assert share.may_prefill
