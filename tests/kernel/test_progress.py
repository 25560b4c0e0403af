"""Whoever loads a model hears how far it is."""

from __future__ import annotations

from pathlib import Path

from tiermesh.kernel.inference.loading import load
from tiermesh.kernel.inference.progress import IMPORTED, WEIGHTS_READ


def test_progress_rises_with_every_weight(tiny_folder: Path) -> None:
    told: list[float] = []
    load(tiny_folder, threads=1, precision="fp32", memory_bytes=32 << 20, on_progress=told.append)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (IMPORTED, WEIGHTS_READ)
    assert len(told) > 10
