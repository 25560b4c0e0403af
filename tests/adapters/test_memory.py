"""How the memory of a node is shared by its models, before any of them is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tiermesh.adapters.engines.memory import (
    LLAMA_MAX_CACHE_BYTES,
    MAX_CACHE_BYTES,
    MIN_CACHE_BYTES,
    PROCESS_BYTES,
    Budget,
    default_limit,
    llama_shape,
)
from tiermesh.adapters.model_source import LocalModel
from tiermesh.config import Precision

GB = 10**9


def model(path: str = "m", parameters: int = 10**9, size_bytes: int = 700_000_000) -> LocalModel:
    return LocalModel("m", Path(path), "sha256:1", "folder", size_bytes, parameters, 4096)


def budget(limit_bytes: int = 16 * GB, models: int = 1, precision: Precision = "fp32") -> Budget:
    return Budget(limit_bytes=limit_bytes, models=models, precision=precision)


@pytest.mark.parametrize(("precision", "wanted"), [("fp32", 4 * GB), ("bf16", 2 * GB), ("auto", 4 * GB)])
def test_weights_take_what_their_precision_takes(precision: Precision, wanted: int) -> None:
    assert budget(precision=precision).weights_bytes(model()) == wanted


def test_a_gguf_takes_what_it_has_on_disk() -> None:
    assert budget().weights_bytes(model("m.gguf")) == 700_000_000


def test_models_that_fit_beside_each_other_get_caches_that_let_them() -> None:
    shared = budget(16 * GB, models=2)
    assert MIN_CACHE_BYTES < shared.cache_bytes(model()) < MAX_CACHE_BYTES
    assert 2 * shared.need_bytes(model()) == shared.limit_bytes


@pytest.mark.parametrize(("limit", "cache"), [(GB, MIN_CACHE_BYTES), (100 * GB, MAX_CACHE_BYTES)])
def test_a_cache_has_bounds(limit: int, cache: int) -> None:
    assert budget(limit).cache_bytes(model()) == cache


def test_llama_cpp_takes_its_cache_at_once_and_so_gets_less_of_it() -> None:
    assert budget(100 * GB).cache_bytes(model("m.gguf")) == LLAMA_MAX_CACHE_BYTES < MAX_CACHE_BYTES


@pytest.mark.parametrize(
    ("token_bytes", "context_length", "cache", "shape"),
    [
        (1000, 131072, 8 * 4096 * 1000, (8, 4096)),
        (1000, 131072, 80 * 4096 * 1000, (8, 40960)),
        (1000, 8192, 80 * 4096 * 1000, (8, 8192)),
        (1000, 8192, 3 * 4096 * 1000, (3, 4096)),
        (1000, 8192, 1000 * 1000, (1, 1000)),
        (1000, 8192, 1000, (1, 512)),
        (0, 8192, 1000, (8, 4096)),
        (0, None, 1000, (8, 4096)),
        (1000, 256, 1000, (1, 256)),
    ],
)
def test_llama_cpp_divides_its_cache_at_the_start(
    token_bytes: int, context_length: int | None, cache: int, shape: tuple[int, int]
) -> None:
    gguf = replace(model("m.gguf"), token_bytes=token_bytes, context_length=context_length)
    assert llama_shape(gguf, cache) == shape


def test_the_machine_keeps_a_share_for_itself() -> None:
    assert PROCESS_BYTES < default_limit(16 * GB) < 16 * GB
