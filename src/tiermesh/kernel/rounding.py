"""Sizes rounded up, where torch compiles a kernel for each of them.

In bf16 on a CPU torch compiles a product for each number of rows that it meets, and attention for each number of
queries and of keys (kernels of oneDNN), and keeps that for ever: megabytes with each new one.
"""

from __future__ import annotations

import torch


def spare(count: int, step: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many to add to `count` up to the next multiple of `step`; 0 where torch takes any number as it is."""
    return -count % step if _compiles_each(dtype, device) else 0


def _compiles_each(dtype: torch.dtype, device: torch.device) -> bool:
    return dtype == torch.bfloat16 and device.type == "cpu"
