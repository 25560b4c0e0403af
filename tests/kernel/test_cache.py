"""What fits into memory, and whose rows are whose."""

from __future__ import annotations

import pytest
import torch

from tiermesh.errors import EngineFailed
from tiermesh.kernel.inference.cache import MAX_SLOTS, Cache, Size, plan_size, token_bytes

SHAPES = {0: (2, 4), 1: (2, 4)}
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("rows", "context", "size"),
    [
        (1_000_000, 2048, Size(MAX_SLOTS, 2048)),
        (20_480, 2048, Size(10, 2048)),
        (8192, 2048, Size(4, 2048)),
        (8191, 2048, Size(4, 2047)),
        (4096, 131_072, Size(4, 1024)),
        (600, 131_072, Size(1, 512)),
        (100, 64, Size(1, 64)),
    ],
)
def test_whole_contexts_where_four_fit_and_shorter_ones_where_not(rows: int, context: int, size: Size) -> None:
    assert plan_size(context_length=context, token_bytes=10, memory_bytes=rows * 10) == size


def test_less_than_one_short_conversation_is_refused() -> None:
    with pytest.raises(EngineFailed, match="too little"):
        plan_size(context_length=2048, token_bytes=1 << 20, memory_bytes=100 << 20)


def test_a_tokens_bytes_are_keys_and_values_of_all_layers() -> None:
    assert token_bytes(SHAPES, torch.float32) == 2 * 2 * (2 * 4) * 4


def filled(cache: Cache, slot: int, value: float, length: int) -> None:
    rows_T = torch.arange(length) + slot * cache.size.capacity
    for layer in SHAPES:
        cache.write(layer, rows_T, torch.full((length, 2, 4), value), torch.full((length, 2, 4), -value))


def test_a_slot_holds_what_was_written_into_it_and_its_neighbours_do_not() -> None:
    cache = Cache(Size(3, 8), SHAPES, torch.float32, CPU)
    filled(cache, 1, 5.0, 8)
    keys_NKLD, values_NKLD = cache.read(1, range(3), 8)
    assert keys_NKLD.shape == (3, 2, 8, 4)
    assert keys_NKLD[:, 0, 0, 0].tolist() == [0.0, 5.0, 0.0]
    assert values_NKLD[:, 1, 7, 3].tolist() == [0.0, -5.0, 0.0]


def test_a_copy_takes_the_beginning_alone() -> None:
    cache = Cache(Size(2, 8), SHAPES, torch.float32, CPU)
    filled(cache, 0, 5.0, 8)
    cache.copy(0, 1, 3)
    keys_NKLD, _ = cache.read(0, range(1, 2), 8)
    assert keys_NKLD[0, 0, :, 0].tolist() == [5.0, 5.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_a_cleared_slot_is_finite_again() -> None:
    cache = Cache(Size(2, 8), SHAPES, torch.bfloat16, CPU)
    for layer in SHAPES:
        cache.write(layer, torch.tensor([9]), *(torch.full((1, 2, 4), torch.nan, dtype=torch.bfloat16),) * 2)
    cache.clear(1)
    assert all(torch.isfinite(tensor).all() for layer in SHAPES for tensor in cache.read(layer, range(2), 8))


def test_memory_is_taken_when_it_is_written() -> None:
    import psutil

    before = psutil.Process().memory_info().rss
    cache = Cache(Size(4, 1 << 20), SHAPES, torch.float32, CPU)  # 512 MiB
    assert psutil.Process().memory_info().rss - before < 64 << 20
    filled(cache, 0, 1.0, 8)
