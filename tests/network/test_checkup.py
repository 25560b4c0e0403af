"""`mesh cluster test` on a network where something is wrong."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.network import netns
from tests.network.lan import Lan
from tests.network.mesh import PORT, Mesh

pytestmark = pytest.mark.network

BRIDGE = "172.17.0.1"
"""Docker gives it to `docker0` of every machine."""


async def prove(mesh: Mesh, lan: Lan, node: int, config: Path) -> dict[str, Any]:
    """What the command says when it is run on the machine of `node`."""
    process = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", lan.namespace(node), sys.executable, "-m", "tiermesh.cli.main"),
        *("cluster", "test", "--json", "--url", f"http://{lan.address(node)}:{PORT}"),
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(config), "MESH_CONFIG": str(config / "cluster.yaml")},
    )
    out, _ = await process.communicate()
    said: dict[str, Any] = json.loads(out)
    assert process.returncode == (0 if said["ok"] else 1)
    return said


async def test_an_address_that_all_machines_have_is_named_with_its_remedy(
    make_lan: Callable[[int], Lan], tmp_path: Path
) -> None:
    lan = make_lan(2)
    (tmp_path / "cluster.yaml").touch()
    async with Mesh(tmp_path, 2, lan=lan) as mesh:
        await mesh.form()
        said = await prove(mesh, lan, 0, tmp_path)
        assert said["ok"], said
        for node in range(2):
            mesh.daemons[node].kill()
            netns.ip(f"addr add {BRIDGE}/16 dev eth0", namespace=lan.namespace(node))
        await mesh.form()
        said = await prove(mesh, lan, 0, tmp_path)
    failed = {f"{row['node']}: {row['check']}": row["advice"] for row in said["findings"] if not row["ok"]}
    at = f"{BRIDGE}:{PORT}"
    assert {*failed} == {f"n1: answers at {at}", f"n1: is reached by n0 at {at}", f"n0: is reached by n1 at {at}"}
    assert "container bridge" in failed[f"n1: answers at {at}"]["cause"]
    assert "both machines have the address" in failed[f"n1: is reached by n0 at {at}"]["cause"]
    assert all("`--interface`" in advice["remedy"] for advice in failed.values())
