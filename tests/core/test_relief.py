"""What a run does as its memory runs short, from the cheapest to nothing left."""

from __future__ import annotations

import json

import pytest

from tiermesh.core.relief import (
    TRIM_STEPS,
    Action,
    Level,
    Possible,
    Taken,
    level_of,
    next_action,
    tightened,
)

ALL = Possible(micro_batch=4, checkpointing=True, offload=True)
NOTHING = Possible(micro_batch=1, checkpointing=False, offload=False)


@pytest.mark.parametrize(
    ("share", "level"),
    [
        (0.0, Level.CALM),
        (0.719, Level.CALM),
        (0.72, Level.WATCHFUL),
        (0.85, Level.HIGH),
        (0.92, Level.SEVERE),
        (0.97, Level.CRITICAL),
        (1.4, Level.CRITICAL),
    ],
)
def test_levels(share: float, level: Level) -> None:
    assert level_of(share) is level


FRESH, TRIMMED = Taken(), Taken(trimmed_at=90)


@pytest.mark.parametrize(
    ("level", "taken", "refused", "action"),
    [
        (Level.CALM, FRESH, False, None),
        (Level.WATCHFUL, FRESH, False, None),
        (Level.HIGH, FRESH, False, Action.TRIM),
        (Level.HIGH, TRIMMED, False, None),
        (Level.HIGH, Taken(trimmed_at=100 - TRIM_STEPS), False, Action.TRIM),
        (Level.SEVERE, FRESH, False, Action.TRIM),
        (Level.SEVERE, TRIMMED, False, Action.HALVE),
        (Level.CRITICAL, FRESH, False, Action.HALVE),
        (Level.CALM, FRESH, True, Action.HALVE),
        (Level.CALM, Taken(halvings=2), True, Action.CHECKPOINT),
        (Level.CALM, Taken(halvings=2, checkpointing=True), True, Action.OFFLOAD),
        (Level.CALM, Taken(halvings=2, checkpointing=True, offloaded=True), True, None),
    ],
)
def test_what_is_done(level: Level, taken: Taken, refused: bool, action: Action | None) -> None:
    assert next_action(level, taken, ALL, step=100, refused=refused) is action


def test_large_copies_are_let_go_before_anything_is_made_smaller() -> None:
    copies = Possible(micro_batch=4, checkpointing=True, offload=True, forget=True)
    assert next_action(Level.CRITICAL, FRESH, copies, step=100) is Action.FORGET
    forgotten = FRESH.after(Action.FORGET, 100)
    assert next_action(Level.CRITICAL, forgotten, copies, step=100) is Action.HALVE


def test_what_older_checkpoints_say_is_understood() -> None:
    told = Taken(halvings=2, offloaded=True).to_dict()
    del told["forgotten"]
    assert Taken.from_dict(told) == Taken(halvings=2, offloaded=True)


def test_what_a_run_can_not_do_is_not_asked_of_it() -> None:
    for level in Level:
        assert next_action(level, TRIMMED, NOTHING, step=100, refused=True) is None


@pytest.mark.parametrize(("micro", "accumulation"), [(4, 1), (8, 2), (6, 1), (7, 3), (1, 4)])
def test_the_effective_batch_holds_down_the_whole_ladder(micro: int, accumulation: int) -> None:
    rows, taken = micro * accumulation, Taken()
    possible = Possible(micro_batch=micro, checkpointing=True, offload=True)
    actions = []
    while (action := next_action(Level.CRITICAL, taken, possible, step=7)) is not None:
        actions.append(action)
        taken = taken.after(action, 7)
        smaller, times = taken.split(micro, accumulation)
        assert smaller >= 1
        assert smaller * (times - 1) < rows <= smaller * times
    assert taken.split(micro, accumulation)[0] == 1
    assert actions == [Action.HALVE] * (micro.bit_length() - 1) + [Action.CHECKPOINT, Action.OFFLOAD]


def test_what_was_taken_survives_a_checkpoint() -> None:
    taken = Taken(halvings=2, checkpointing=True, trimmed_at=9)
    assert Taken.from_dict(json.loads(json.dumps(taken.to_dict()))) == taken


def test_after_a_kill_a_run_begins_one_step_smaller() -> None:
    assert tightened(Taken(), ALL, step=3) == Taken(halvings=1, trimmed_at=3)
    assert tightened(Taken(), NOTHING, step=3) is None
