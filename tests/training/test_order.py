from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tiermesh.kernel.training.data.order import Order

seeds = st.integers(0, 2**63 - 1)
sizes = st.integers(1, 300)


@settings(deadline=None)
@given(seeds, sizes, st.integers(0, 1000))
def test_every_epoch_has_each_row_once(seed: int, rows: int, epoch: int) -> None:
    assert sorted(Order(seed, rows).rows_at(epoch * rows, rows)) == list(range(rows))


@settings(deadline=None)
@given(seeds, sizes, st.integers(0, 10**6), st.integers(1, 50), st.integers(0, 50))
def test_a_position_says_its_row_whatever_was_asked_before(
    seed: int, rows: int, start: int, count: int, later: int
) -> None:
    order = Order(seed, rows)
    whole = order.rows_at(start, later + count)
    assert Order(seed, rows).rows_at(start + later, count) == whole[later:]
    assert [row for at in range(count) for row in order.rows_at(start + at, 1)] == order.rows_at(start, count)


@settings(deadline=None)
@given(seeds, sizes, st.integers(1, 8), st.integers(0, 5000), st.integers(0, 64))
def test_shards_share_the_positions_out(seed: int, rows: int, world: int, start: int, count: int) -> None:
    order = Order(seed, rows)
    parts = [order.sharded(rank, world).rows_at(start, count) for rank in range(world)]
    assert Counter(row for part in parts for row in part) == Counter(order.rows_at(start, count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    interleaved = [order.sharded(at % world, world).rows_at(at, 1)[0] for at in range(start, start + count)]
    assert interleaved == order.rows_at(start, count)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    rows = 1000
    orders = {tuple(Order(seed, rows).rows_at(epoch * rows, rows)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_row_comes_to_every_place_about_equally_often() -> None:
    """Chi-squared over 64 x 64 counts of 6,400 each-row-once epochs: mean 63 x 63, some 89 its standard deviation."""
    rows, epochs = 64, 6400
    order = Order(7, rows)
    counts: Counter[tuple[int, int]] = Counter()
    for epoch in range(epochs):
        counts.update(enumerate(order.rows_at(epoch * rows, rows)))
    expected = epochs / rows
    squared = sum((counts[place, row] - expected) ** 2 / expected for place in range(rows) for row in range(rows))
    assert abs(squared - 63 * 63) < 5 * 89


def test_neighbours_do_not_stay_together() -> None:
    """Of a random permutation of n rows about 2 pairs stay next to one another, whatever n is."""
    found = Order(3, 100_003).rows_at(0, 100_003)
    assert sum(abs(one - other) == 1 for one, other in pairwise(found)) < 15


def test_an_epoch_is_told_by_the_position() -> None:
    order = Order(0, 10)
    assert [order.epoch_at(position) for position in (0, 9, 10, 25)] == [0, 0, 1, 2]
