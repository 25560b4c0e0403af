"""What a run knows of its memory, and what it gives back."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from tiermesh.core.relief import Level
from tiermesh.kernel.training import memory
from tiermesh.kernel.training.memory import Memory, cgroup_figures, free_bytes, resident_bytes, trim

CPU = torch.device("cpu")


def test_the_figures_are_those_of_the_system() -> None:
    theirs = psutil.Process().memory_info().rss
    assert resident_bytes() == pytest.approx(theirs, rel=0.05)
    assert memory.peak_bytes() >= resident_bytes() * 0.9
    proportional = memory.proportional_bytes()
    assert proportional is None or 0 < proportional <= resident_bytes() * 1.1


def test_the_share_is_of_the_limit() -> None:
    usage = Memory(resident_bytes() * 2, CPU, Path("/nowhere")).look()
    assert usage.share == pytest.approx(0.5, abs=0.1)
    assert usage.level is Level.CALM
    assert Memory(resident_bytes(), CPU, Path("/nowhere")).look().level >= Level.SEVERE


def test_without_a_limit_it_is_what_is_free_less_a_reserve() -> None:
    available = psutil.virtual_memory().available
    assert 0 < Memory(None, CPU).limit_bytes <= available + resident_bytes()
    assert free_bytes() > resident_bytes()


def test_a_container_that_is_nearly_full_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("980\n")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 900\ninactive_file 50\n")
    assert cgroup_figures(tmp_path) == (930, 1000)
    assert Memory(1 << 40, CPU, tmp_path).look().share == pytest.approx(0.93)


@pytest.mark.parametrize("limit", ["max", str((1 << 63) - 4096)])
def test_a_container_without_a_limit_does_not(tmp_path: Path, limit: str) -> None:
    (tmp_path / "memory.usage_in_bytes").write_text("980\n")
    (tmp_path / "memory.limit_in_bytes").write_text(limit)
    assert cgroup_figures(tmp_path) == (980, None)


def test_a_machine_that_is_nearly_full_counts_whoever_fills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        available, total = 40, 1000

    monkeypatch.setattr(psutil, "virtual_memory", Full)
    assert Memory(1 << 40, CPU, Path("/nowhere")).look().level is Level.SEVERE
    Full.available = 100
    assert Memory(1 << 40, CPU, Path("/nowhere")).look().level is Level.CALM


def test_what_is_free_is_given_back() -> None:
    """Small blocks, which the allocator would keep."""
    blocks = [torch.ones(4096) for _ in range(4000)]
    keep = blocks[-1]
    full = resident_bytes()
    del blocks
    trim()
    assert full - resident_bytes() > 40 << 20
    assert keep.sum() == 4096
