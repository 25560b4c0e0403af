from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.kernel.training.data.packing import Packed, one_each, pack

FILL = 0.98
PLANNED_WITHIN_S = 1.0
"""100,000 documents take some hundredths; a plan that is quadratic takes minutes."""


@st.composite
def documents(draw: st.DrawFn) -> tuple[list[int], int]:
    row_length = draw(st.integers(1, 64))
    return draw(st.lists(st.integers(1, row_length), max_size=200)), row_length


def planned(lengths: list[int], row_length: int) -> Packed:
    return pack(np.array(lengths, dtype=np.int64), row_length)


def rows_of(packed: Packed) -> list[list[int]]:
    return [packed.items[start:end].tolist() for start, end in pairwise(packed.starts)]


def naive_rows(lengths: list[int], row_length: int) -> int:
    """Best-fit decreasing as it is written in books, one document at a time."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [at for at, space in enumerate(spaces) if space >= length]
        if fitting:
            spaces[min(fitting, key=lambda at: spaces[at])] -= length
        else:
            spaces.append(row_length - length)
    return len(spaces)


@settings(deadline=None)
@given(documents())
def test_every_document_is_in_one_row_and_no_row_overflows(given_: tuple[list[int], int]) -> None:
    lengths, row_length = given_
    rows = rows_of(planned(lengths, row_length))
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[item] for item in row) <= row_length for row in rows)


@settings(deadline=None)
@given(documents())
def test_placing_all_of_one_length_together_is_best_fit_decreasing(given_: tuple[list[int], int]) -> None:
    lengths, row_length = given_
    assert planned(lengths, row_length).rows == naive_rows(lengths, row_length)


@settings(deadline=None)
@given(documents())
def test_the_same_documents_make_the_same_plan(given_: tuple[list[int], int]) -> None:
    lengths, row_length = given_
    assert rows_of(planned(lengths, row_length)) == rows_of(planned(list(lengths), row_length))


@pytest.mark.parametrize("spread", [0.4, 0.7, 1.0])
def test_short_mixed_documents_leave_hardly_a_position_unused(spread: float) -> None:
    random = np.random.default_rng(0)
    for count in (2_000, 100_000):
        drawn = random.lognormal(np.log(200) - spread**2 / 2, spread, count)
        lengths = np.clip(drawn, 8, 512).astype(np.int64)
        assert 150 < lengths.mean() < 210
        started = time.perf_counter()
        packed = pack(lengths, 512)
        assert time.perf_counter() - started < PLANNED_WITHIN_S
        assert lengths.sum() / (packed.rows * 512) >= FILL


def test_a_row_each_is_for_models_that_can_not_keep_documents_apart() -> None:
    assert rows_of(one_each(3)) == [[0], [1], [2]]
    assert one_each(0).rows == 0
