"""In which precision a model is computed: measured on this machine, not guessed from the name of its processor."""

from __future__ import annotations

import time
from typing import Literal

import torch
from torch.nn.functional import linear

Precision = Literal["auto", "fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("auto", "fp32", "bf16")

TRIAL_ROWS = (1, 8, 64)
"""A lone answer, several at once, a prompt."""
TRIAL_WEIGHTS = 8
"""Different matrices in turn, so that no cache flatters the measurement."""
TRIAL_WIDTH = 1024
"""4 MiB a matrix in fp32: larger than most second-level caches, and still measured in milliseconds."""
TRIALS = 3
"""The best of these counts: whatever else the machine does can only slow a trial."""
MARGIN = 0.9
"""bf16 must win by a tenth, because fp32 gives the same answer in every batch."""


def choose_dtype(wanted: Precision, device: torch.device) -> torch.dtype:
    """What to compute in. On a CPU `auto` is bf16 where its products are faster, which takes AMX or AVX512-bf16."""
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bf16" else torch.float32
    if device.type != "cpu":
        return torch.bfloat16 if _has_bf16(device) else torch.float32
    return torch.bfloat16 if _duration_s(torch.bfloat16) < MARGIN * _duration_s(torch.float32) else torch.float32


def name_of(dtype: torch.dtype) -> Precision:
    """As it is shown and asked for."""
    return "bf16" if dtype == torch.bfloat16 else "fp32"


def _has_bf16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def _duration_s(dtype: torch.dtype) -> float:
    """Seconds for matrix products of all the sizes that a model's layers see."""
    weights = [torch.full((TRIAL_WIDTH, TRIAL_WIDTH), 0.01, dtype=dtype) for _ in range(TRIAL_WEIGHTS)]
    inputs = [torch.full((rows, TRIAL_WIDTH), 0.01, dtype=dtype) for rows in TRIAL_ROWS]
    return min(_trial(inputs, weights) for _ in range(TRIALS))


def _trial(inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        for rows in inputs:
            for weight in weights:
                linear(rows, weight)
    return time.perf_counter() - started
