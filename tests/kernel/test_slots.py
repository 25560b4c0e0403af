"""Which slot a sequence gets, and what it need not compute again."""

from __future__ import annotations

from tiermesh.kernel.inference.slots import MIN_COPY_TOKENS, Placement, Slots

FIRST_TURN = list(range(100))
SYSTEM = FIRST_TURN[: MIN_COPY_TOKENS + 10]


def run(slots: Slots, tokens: list[int], adapter: str | None = None) -> Placement:
    """Place a sequence and compute all of it."""
    placement = slots.take(tokens, adapter)
    placement.slot.tokens.extend(tokens[placement.reused :])
    return placement


def finished(slots: Slots, tokens: list[int], adapter: str | None = None) -> Placement:
    placement = run(slots, tokens, adapter)
    slots.release(placement.slot)
    return placement


def test_slots_that_were_never_used_come_first_and_in_order() -> None:
    slots = Slots(3)
    taken = [finished(slots, [number] * 50).slot.index for number in range(3)]
    assert taken == [0, 1, 2]


def test_then_the_least_recently_used_one() -> None:
    slots = Slots(2)
    finished(slots, [1] * 50)
    finished(slots, [2] * 50)
    finished(slots, [1] * 50 + [3])
    assert finished(slots, [4] * 50).slot.index == 1


def test_the_next_turn_goes_on_in_its_slot() -> None:
    slots = Slots(4)
    first = finished(slots, FIRST_TURN)
    second = slots.take([*FIRST_TURN, 7, 8, 9], None)
    assert second == Placement(first.slot, reused=100)


def test_the_last_token_is_always_computed_because_its_logits_are_wanted() -> None:
    slots = Slots(1)
    finished(slots, FIRST_TURN)
    assert slots.take(FIRST_TURN, None).reused == len(FIRST_TURN) - 1


def test_a_shared_beginning_is_copied_when_continuing_in_place_would_destroy_a_longer_conversation() -> None:
    slots = Slots(2)
    first = finished(slots, FIRST_TURN)
    other = slots.take([*SYSTEM, 500, 501], None)
    assert (other.slot.index, other.reused, other.source) == (1, len(SYSTEM), first.slot)
    assert first.slot.tokens == FIRST_TURN


def test_the_beginning_of_one_that_still_runs_is_copied() -> None:
    slots = Slots(2)
    first = run(slots, FIRST_TURN)
    other = slots.take([*SYSTEM, 500], None)
    assert (other.reused, other.source) == (len(SYSTEM), first.slot)


def test_a_few_common_tokens_are_not_worth_a_copy() -> None:
    slots = Slots(2)
    run(slots, FIRST_TURN)
    other = slots.take([*FIRST_TURN[: MIN_COPY_TOKENS - 1], 500], None)
    assert (other.reused, other.source) == (0, None)


def test_the_only_free_slot_is_reused_in_place_however_little_is_shared() -> None:
    slots = Slots(1)
    finished(slots, FIRST_TURN)
    assert slots.take([*SYSTEM, 500], None).reused == len(SYSTEM)


def test_what_an_adapter_computed_serves_that_adapter_alone() -> None:
    slots = Slots(3)
    finished(slots, FIRST_TURN, "a")
    assert slots.take([*FIRST_TURN, 7], None).reused == 0
    assert slots.take([*FIRST_TURN, 7], "a").reused == len(FIRST_TURN)


def test_what_is_spoilt_serves_nobody() -> None:
    slots = Slots(1)
    slots.release(run(slots, FIRST_TURN).slot, spoilt=True)
    assert slots.take([*FIRST_TURN, 7], None).reused == 0


def test_every_slot_comes_back() -> None:
    slots = Slots(4)
    taken = [run(slots, [number] * 40) for number in range(4)]
    assert slots.free == 0
    for placement in taken:
        slots.release(placement.slot)
    assert slots.free == 4
