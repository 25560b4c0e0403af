"""Keys and values of all sequences, one slot each.

Legend: S slots, C capacity of a slot in tokens, R = S x C rows, K key/value heads, D size of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from tiermesh.errors import EngineFailed

MAX_SLOTS = 32
"""Twice as many as run at once: the others keep conversations for their next turn."""
GENEROUS_SLOTS = 4
"""With room for fewer than this many whole contexts, the context is cut instead."""
MIN_CAPACITY = 512
"""Below this many tokens a chat model is of no use."""

Shapes = Mapping[int, tuple[int, int]]
"""Of each layer: heads and the size of one."""


@dataclass(frozen=True, slots=True)
class Size:
    """What fits into the memory given."""

    slots: int
    capacity: int


def plan_size(*, context_length: int, token_bytes: int, memory_bytes: int, wanted: int = MAX_SLOTS) -> Size:
    """As many whole contexts as fit, `wanted` at most; a shorter context where not even four would.

    Raises `EngineFailed` when there is no room for one short conversation.
    """
    rows = memory_bytes // token_bytes
    capacity = min(context_length, max(rows // GENEROUS_SLOTS, min(rows, MIN_CAPACITY)))
    if capacity < min(MIN_CAPACITY, context_length):
        raise EngineFailed(
            f"{memory_bytes >> 20} MiB are too little for this model's cache: "
            f"{MIN_CAPACITY} tokens take {MIN_CAPACITY * token_bytes >> 20} MiB"
        )
    return Size(slots=max(1, min(wanted, rows // capacity)), capacity=capacity)


def token_bytes(shapes: Shapes, dtype: torch.dtype) -> int:
    """Memory that one token of one sequence takes."""
    return sum(2 * heads * size for heads, size in shapes.values()) * dtype.itemsize


class Cache:
    """The tensors. Memory of a slot is taken when it is first written, on a CPU."""

    def __init__(self, size: Size, shapes: Shapes, dtype: torch.dtype, device: torch.device) -> None:
        self.size, self.dtype = size, dtype
        rows = size.slots * size.capacity
        self._keys = {layer: _zeros((rows, *shape), dtype, device) for layer, shape in shapes.items()}
        self._values = {layer: _zeros((rows, *shape), dtype, device) for layer, shape in shapes.items()}

    def write(self, layer: int, rows_T: torch.Tensor, keys_TKD: torch.Tensor, values_TKD: torch.Tensor) -> None:
        """Put new tokens at their rows: slot x capacity + position."""
        self._keys[layer].index_copy_(0, rows_T, keys_TKD)
        self._values[layer].index_copy_(0, rows_T, values_TKD)

    def read(self, layer: int, slots: range, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of adjacent slots, their first `length` tokens, as views of shape [slots, K, length, D].

        What lies beyond a sequence's end is finite and means nothing.
        """
        return self._of(self._keys[layer], slots, length), self._of(self._values[layer], slots, length)

    def copy(self, source: int, target: int, length: int) -> None:
        """The first `length` tokens of one slot into another."""
        at, to = source * self.size.capacity, target * self.size.capacity
        for rows_RKD in (*self._keys.values(), *self._values.values()):
            rows_RKD[to : to + length] = rows_RKD[at : at + length]

    def clear(self, slot: int) -> None:
        """Forget a slot that may hold what is not a number."""
        at = slot * self.size.capacity
        for rows_RKD in (*self._keys.values(), *self._values.values()):
            rows_RKD[at : at + self.size.capacity] = 0

    def _of(self, rows_RKD: torch.Tensor, slots: range, length: int) -> torch.Tensor:
        slots_SCKD = rows_RKD.view(self.size.slots, self.size.capacity, *rows_RKD.shape[1:])
        return slots_SCKD[slots.start : slots.stop, :length].transpose(1, 2)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros that take no memory until they are written, where the system can do that: `torch.zeros` writes them."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    bytes_shape = (*shape[:-1], shape[-1] * dtype.itemsize)
    return torch.from_numpy(np.zeros(bytes_shape, dtype=np.uint8)).view(dtype)
