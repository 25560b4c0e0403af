"""What of a spec a run can't change on its way, known to whoever starts workers and to the worker itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIXED = frozenset(
    {"task", "method", "lora", "seq_len", "packing", "seed", "optimizer", "weight_decay", "loss", "dpo", "data"}
    | {"eval_fraction", "eval_path"}
)
"""The tensors, the order of the data or their meaning hang on these fields."""
BATCH = ("micro_batch_size", "gradient_accumulation_steps")
"""Their product must stay."""
PLACES = frozenset({"eval_path"})
"""Fields that name a file: which one it is, its digest says, and only the worker compares those."""


def effective_batch(spec: Mapping[str, Any]) -> int:
    """Examples in a step."""
    first, second = (int(spec.get(name) or 1) for name in BATCH)
    return first * second


def what_forbids(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of what must not differ between a checkpoint's spec and the one that is to go on from it, and does."""
    differ = [name for name in sorted(FIXED - PLACES) if then.get(name) != now.get(name)]
    return differ if effective_batch(then) == effective_batch(now) else [*differ, "the effective batch"]
