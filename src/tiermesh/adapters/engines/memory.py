"""What a model's worker takes of the machine's memory, before it is started: reckoned, not measured.

    need = the process itself + the weights + the cache of keys and values

The cache is what may be bargained about: each model gets what is left of an equal share of the limit, within bounds,
so that models that can be in memory together are.
"""

from __future__ import annotations

from pathlib import Path

from tiermesh.adapters.model_source import LocalModel
from tiermesh.config import Precision

MIB = 1 << 20
DEFAULT_SHARE = 0.6
"""Of the machine's memory: the rest is for the person in front of it, the daemon, and the disk cache."""
PROCESS_BYTES = 600 * MIB
"""A worker without a model, measured: Python, torch and transformers are 420 MiB; the rest is work space."""
MIN_CACHE_BYTES = 128 * MIB
"""Below this even a small model holds only a few conversations, and its batch stays small."""
MAX_CACHE_BYTES = 2048 * MIB
"""16 conversations of 2,700 tokens with a 135M model; more would be taken from other programs and rarely used."""
LLAMA_SLOTS = 8
"""More of them make each slower, and llama.cpp's server gains little from a batch beyond it."""
LLAMA_TOKENS = 4096
"""A slot with fewer is worth less than having one slot less: most conversations fit."""
LLAMA_LEAST_TOKENS = 512
"""A question and an answer; with less there is no use in serving the model at all."""
AUTO_BYTES = 4
"""A parameter of a worker that has yet to measure whether bf16 is faster here: the larger of both."""


def default_limit(ram_bytes: int) -> int:
    """For all models together, where nobody set a limit."""
    return int(ram_bytes * DEFAULT_SHARE)


def weights_bytes(model: LocalModel, precision: Precision) -> int:
    """In memory; a GGUF stays as it is on disk."""
    if is_gguf(model.path):
        return model.size_bytes
    return model.parameters * (2 if precision == "bf16" else AUTO_BYTES)


def cache_bytes(limit: int, models: int, weights: int) -> int:
    """For keys and values, when `models` of this kind share the limit."""
    left = limit // max(1, models) - PROCESS_BYTES - weights
    return min(MAX_CACHE_BYTES, max(MIN_CACHE_BYTES, left))


def llama_shape(model: LocalModel, cache: int) -> tuple[int, int]:
    """Slots, and tokens of each: llama.cpp divides its cache once, at the start."""
    tokens = cache // model.token_bytes if model.token_bytes else LLAMA_SLOTS * LLAMA_TOKENS
    slots = max(1, min(LLAMA_SLOTS, tokens // LLAMA_TOKENS))
    return slots, min(model.context_length or LLAMA_TOKENS, max(LLAMA_LEAST_TOKENS, tokens // slots))


def need_bytes(weights: int, cache: int) -> int:
    """All that a worker takes."""
    return PROCESS_BYTES + weights + cache


def is_gguf(path: Path) -> bool:
    """One file for llama.cpp, where the others are folders."""
    return path.suffix == ".gguf"


def gigabytes(count: int) -> str:
    """For a person."""
    return f"{count / 1e9:.1f} GB"
