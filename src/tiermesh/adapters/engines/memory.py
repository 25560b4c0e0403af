"""What a model's worker takes of the machine's memory, before it is started: reckoned, not measured.

    need = the process itself + the weights + the cache of keys and values

The cache is what may be bargained about: each model gets what is left of an equal share of the limit, within bounds,
so that models that can be in memory together are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tiermesh.adapters.model_source import LocalModel
from tiermesh.config import Precision

MIB = 1 << 20
DEFAULT_SHARE = 0.6
"""Of the machine's memory: the rest is for the person in front of it, the daemon, and the disk cache."""
PROCESS_BYTES = 1200 * MIB
"""A worker beside weights and cache: Python, torch and transformers take 450 MiB, and a full batch of long prompts some
700 more to work in (measured with a 135M model)."""
LLAMA_PROCESS_BYTES = 300 * MIB
"""The same of llama.cpp, which needs no torch."""
MIN_CACHE_BYTES = 128 * MIB
"""Below this even a small model holds only a few conversations, and its batch stays small."""
MAX_CACHE_BYTES = 8192 * MIB
"""16 whole contexts of a 135M model are 6 GiB. The worker takes the memory of a place when it is first used."""
LLAMA_MAX_CACHE_BYTES = 1024 * MIB
"""llama.cpp takes all of it at its start."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The memory that `models` models of this node share."""

    limit_bytes: int
    models: int
    precision: Precision

    def weights_bytes(self, model: LocalModel) -> int:
        """In memory; a GGUF stays as it is on disk."""
        if is_gguf(model.path):
            return model.size_bytes
        return model.parameters * (2 if self.precision == "bf16" else AUTO_BYTES)

    def cache_bytes(self, model: LocalModel) -> int:
        """For keys and values: what is left of the model's share, within bounds."""
        left = self.limit_bytes // self.models - _process_bytes(model) - self.weights_bytes(model)
        largest = LLAMA_MAX_CACHE_BYTES if is_gguf(model.path) else MAX_CACHE_BYTES
        return min(largest, max(MIN_CACHE_BYTES, left))

    def need_bytes(self, model: LocalModel) -> int:
        """All that its worker takes."""
        return _process_bytes(model) + self.weights_bytes(model) + self.cache_bytes(model)


def llama_shape(model: LocalModel, cache: int) -> tuple[int, int]:
    """Slots, and tokens of each: llama.cpp divides its cache once, at the start."""
    tokens = cache // model.token_bytes if model.token_bytes else LLAMA_SLOTS * LLAMA_TOKENS
    slots = max(1, min(LLAMA_SLOTS, tokens // LLAMA_TOKENS))
    return slots, min(model.context_length or LLAMA_TOKENS, max(LLAMA_LEAST_TOKENS, tokens // slots))


def is_gguf(path: Path) -> bool:
    """One file for llama.cpp, where the others are folders."""
    return path.suffix == ".gguf"


def _process_bytes(model: LocalModel) -> int:
    return LLAMA_PROCESS_BYTES if is_gguf(model.path) else PROCESS_BYTES


def gigabytes(count: int) -> str:
    """For a person."""
    return f"{count / 1e9:.1f} GB"
