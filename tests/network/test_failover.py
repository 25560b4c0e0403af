"""Whoever dies, is cut off, freezes or leaves: the others go on, and no prompt notices.

The short form, with wide bounds, of what `scripts/figures` measures in full.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.network import trials
from tests.network.lan import Lan
from tests.network.mesh import Mesh

pytestmark = pytest.mark.network


async def test_a_killed_coordinator_is_replaced_and_no_prompt_fails(lan: Lan, tmp_path: Path) -> None:
    async with Mesh(tmp_path, 5, lan=lan) as mesh:
        await mesh.form()
        took_s = []
        for _ in range(3):
            victim = mesh.coordinator()
            async with trials.prompting(mesh) as prompts:
                replaced = await trials.kill_coordinator(mesh)
            print(f"replaced after {replaced.known_s:.3f} s; {prompts.summary()}")
            took_s.append(replaced.known_s)
            assert mesh.coordinator() != victim
            assert prompts.failed == []
        assert min(took_s) < 2.0
        assert max(took_s) < 5.0


async def test_a_coordinator_whose_cable_is_cut_is_replaced_and_no_prompt_fails(lan: Lan, tmp_path: Path) -> None:
    async with Mesh(tmp_path, 5, lan=lan) as mesh:
        await mesh.form()
        async with trials.prompting(mesh) as prompts:
            replaced = await trials.cut_coordinator(mesh, lan)
        print(f"replaced after {replaced.known_s:.3f} s; {prompts.summary()}")
        assert replaced.known_s < 5.0
        assert prompts.failed == []


async def test_a_lost_member_is_marked_down_and_comes_back_by_itself(lan: Lan, tmp_path: Path) -> None:
    """Its connections' end is noticed before its silence is, unless this machine is held up: so it has three tries."""
    async with Mesh(tmp_path, 5, lan=lan, engines=False) as mesh:
        await mesh.form()
        for _ in range(3):
            killed = await trials.kill_member(mesh)
            print(f"killed: down after {killed.down_s:.3f} s, back {killed.back_s:.3f} s after its start")
            if killed.down_s < 1.0:
                break
        assert killed.down_s < 1.0
        cut = await trials.cut_member(mesh, lan)
        print(f"cut: down after {cut.down_s:.3f} s, back {cut.back_s:.3f} s after the cable")
        assert cut.down_s < 4.0


async def test_a_frozen_coordinator_wakes_as_a_member(lan: Lan, tmp_path: Path) -> None:
    async with Mesh(tmp_path, 5, lan=lan) as mesh:
        await mesh.form()
        async with trials.prompting(mesh) as prompts:
            thaw = await trials.freeze_coordinator(mesh, for_s=10)
        print(f"replaced after {thaw.replaced_s:.3f} s, a member {thaw.member_s:.3f} s after; {prompts.summary()}")
        assert thaw.replaced_s < 5.0
        assert thaw.member_s < 5.0
        assert prompts.failed == []


async def test_a_coordinator_that_is_told_to_stop_hands_over(lan: Lan, tmp_path: Path) -> None:
    async with Mesh(tmp_path, 3, lan=lan) as mesh:
        await mesh.form()
        leaver = mesh.coordinator()
        async with trials.prompting(mesh) as prompts:
            handed_over_s = await trials.stop_coordinator(mesh)
        print(f"handed over after {handed_over_s:.3f} s; {prompts.summary()}")
        assert handed_over_s < 2.0
        assert await mesh.exit_code(leaver) == 0
        assert prompts.failed == []
