"""Daemons that meet: forming, joining, parting, healing, and staying apart."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.network import trials
from tests.network.frames import Announcements
from tests.network.lan import Lan
from tests.network.mesh import Mesh
from tests.network.poll import Pictures, agreed

pytestmark = pytest.mark.network


async def test_five_started_together_are_one_mesh(lan: Lan, tmp_path: Path) -> None:
    async with Mesh(tmp_path, 5, lan=lan, engines=False) as mesh:
        formation = await trials.form(mesh)
        assert formation.after_last_ready_s < 5.0


async def test_a_newcomer_is_everywhere_at_once_and_deposes_nobody(lan: Lan, tmp_path: Path) -> None:
    async with Mesh(tmp_path, 5, lan=lan, engines=False) as mesh, Announcements(lan) as announcements:
        await mesh.form(0, 1, 2, 3)
        before = mesh.picture(0)
        assert await trials.join(mesh, announcements, lan, 4) < 4.0
        assert (mesh.picture(4).coordinator, mesh.picture(4).ballot) == (before.coordinator, before.ballot)


@pytest.mark.parametrize("coordinator_in_larger", [True, False])
async def test_a_parted_mesh_answers_on_both_sides_and_heals(
    lan: Lan, tmp_path: Path, coordinator_in_larger: bool
) -> None:
    async with Mesh(tmp_path, 5, lan=lan) as mesh:
        await mesh.form()
        healing = await trials.part_and_heal(mesh, lan, coordinator_in_larger=coordinator_in_larger)
        assert healing.one_s < 8.0


async def test_after_a_power_cut_they_meet_again_without_mdns_or_join(lan: Lan, tmp_path: Path) -> None:
    async with Mesh(tmp_path, 5, lan=lan, engines=False) as mesh:
        await mesh.form()
        again = await trials.cut_power(mesh, random.Random(7))
        assert again.after_last_start_s < 15.0


async def test_a_mesh_made_by_join_alone_meets_again_after_a_power_cut(
    make_lan: Callable[[int], Lan], tmp_path: Path
) -> None:
    lan = make_lan(3)
    async with Mesh(tmp_path, 3, lan=lan, engines=False) as mesh:
        for node in range(3):
            mesh.configure(node, discovery={"method": "explicit"})
        mesh.start(0)
        for node in (1, 2):
            mesh.start(node, flags=("--join", mesh.seats[node - 1].address))
        await mesh.until_agreed()
        await trials.cut_power(mesh, random.Random(7))


@pytest.mark.alone
async def test_starved_of_processor_time_nobody_is_suspected(lan: Lan, tmp_path: Path) -> None:
    async with Mesh(tmp_path, 5, lan=lan, engines=False) as mesh:
        await mesh.form()
        assert await trials.starve(mesh, for_s=15) == (0, 0)


@pytest.mark.parametrize("moves", [0, 1])
async def test_a_machine_whose_address_changes_is_found_again(
    make_lan: Callable[[int], Lan], tmp_path: Path, moves: int
) -> None:
    lan = make_lan(2)
    async with Mesh(tmp_path, 2, lan=lan, engines=False, interface=None) as mesh:
        await mesh.form()
        mover = mesh.coordinator() if moves == 0 else mesh.others(mesh.coordinator())[0]
        stayer = mesh.others(mover)[0]
        lan.readdress(mover, "10.77.0.77")

        def found_again(pictures: Pictures) -> bool:
            urls = [node["urls"] for node in mesh.watch.reports[stayer]["nodes"] if node["id"] == mesh.id_of(mover)]
            return urls == [["http://10.77.0.77:8000"]] and agreed(pictures, (0, 1))

        await mesh.watch.until(found_again, 30, "the mover is up under its new address")


async def test_two_clusters_on_one_network_stay_apart(make_lan: Callable[[int], Lan], tmp_path: Path) -> None:
    lan = make_lan(4)
    async with Mesh(tmp_path, 4, lan=lan, engines=False, clusters={2: "other", 3: "other"}) as mesh:
        mesh.start()
        for pair in ((0, 1), (2, 3)):
            await mesh.until_agreed(*pair, alone=True)
        ours, theirs = ({mesh.id_of(node) for node in pair} for pair in ((0, 1), (2, 3)))
        for change in mesh.watch.changes:
            if change.picture is not None:
                assert set(change.picture.states) <= (ours if change.seat < 2 else theirs)


async def test_two_machines_of_one_host_name_are_two_nodes(make_lan: Callable[[int], Lan], tmp_path: Path) -> None:
    async with Mesh(tmp_path, 2, lan=make_lan(2), engines=False, names={0: None, 1: None}) as mesh:
        await mesh.form()
        picture = mesh.picture(0)
        assert len(picture.names) == 2
        assert len(set(picture.names.values())) == 1


async def test_a_copied_state_folder_is_refused_with_the_remedy(make_lan: Callable[[int], Lan], tmp_path: Path) -> None:
    async with Mesh(tmp_path, 3, lan=make_lan(3), engines=False) as mesh:
        await mesh.form(0, 1)
        original, copy = mesh.daemons[0], mesh.daemons[2]
        original.terminate()
        assert await mesh.exit_code(0) == 0
        shutil.copytree(original.state_dir, copy.state_dir)
        mesh.start(0)
        await mesh.until_agreed(0, 1)
        copy.start()
        assert await mesh.exit_code(2) != 0
        assert str(copy.state_dir) in copy.log_text(), "the error must say what to delete"
        assert agreed(mesh.watch.pictures, (0, 1)), "the original must not suffer"
        assert original.running


async def test_other_tokens_other_meshes(make_lan: Callable[[int], Lan], tmp_path: Path) -> None:
    tokens = {0: "sesame", 1: "sesame", 2: "barley"}
    async with Mesh(tmp_path, 3, lan=make_lan(3), engines=False, tokens=tokens) as mesh:
        mesh.start()
        await mesh.until_agreed(0, 1, alone=True)
        await mesh.until_agreed(2, alone=True)
        assert all(len(c.picture.states) < 3 for c in mesh.watch.changes if c.picture is not None)
        async with mesh.seats[2].session("sesame") as session, session.get("/api/cluster") as response:
            assert response.status == 401
        async with mesh.seats[2].session() as session, session.get("/health") as response:
            assert response.status == 200
