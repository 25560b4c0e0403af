"""Real daemons on loopback, without root: found over mDNS, quick to start, cheap to keep, gone without a trace."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from tests.network import processes
from tests.network.mesh import Mesh


async def test_three_daemons_on_loopback_find_one_another_by_themselves(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 3, engines=False) as mesh:
        await mesh.form()
        assert len({mesh.id_of(node) for node in range(3)}) == 3


def test_help_comes_at_once() -> None:
    took = [processes.help_s() for _ in range(5)]
    print(f"mesh --help: median {statistics.median(took):.3f} s")
    assert min(took) <= 0.8


async def test_a_daemon_is_ready_soon(tmp_path: Path) -> None:
    took_s = min([await processes.ready_s(tmp_path / str(number)) for number in range(2)])
    print(f"mesh up to ready: {took_s:.2f} s")
    assert took_s <= 4.0


@pytest.mark.slow
@pytest.mark.alone
async def test_an_idle_mesh_costs_little(tmp_path: Path) -> None:
    found = await processes.idle(tmp_path, nodes=3, for_s=20)
    for one in found:
        print(f"idle: {one.memory_bytes / 1e6:.0f} MB, {one.cpu * 100:.2f} % of a core")
        assert one.memory_bytes <= 90e6
        assert one.cpu <= 0.04


@pytest.mark.model
async def test_a_killed_daemon_leaves_no_worker_behind(tmp_path: Path) -> None:
    found = await processes.orphans(tmp_path, after_s=5.0)
    assert found.children > 0, "there was no worker to leave behind"
    assert found.left == 0
