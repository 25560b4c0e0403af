"""`mesh node`: orders about one node."""

from __future__ import annotations

import json

import pytest
from tests.cli.conftest import Mesh
from tests.mesh_fake import FakeMesh


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (
            "drain",
            "alpha one takes no new work; prompts there are finished, and a job that trains there stops at a "
            "checkpoint and goes on elsewhere\n",
        ),
        ("resume", "alpha one takes work again\n"),
        ("remove", "alpha one is removed\n"),
    ],
)
def test_the_order_is_passed_on_and_said(order: str, said: str, fake: FakeMesh, mesh: Mesh) -> None:
    done = mesh("node", order, "alpha one")
    assert (done.exit_code, done.stdout) == (0, said)
    assert [(method, path) for method, path, _, _ in fake.requests][-1] == ("POST", f"/api/nodes/alpha one/{order}")
    assert json.loads(mesh("node", order, "alpha one", "--json").stdout)["order"] == order


def test_what_the_mesh_refuses_is_told(fake: FakeMesh, mesh: Mesh) -> None:
    fake.failure = (404, {"type": "not_found", "message": "no node is called 'x'"}, {})
    done = mesh("node", "drain", "x")
    assert done.exit_code != 0
    assert "no node is called 'x'" in done.stderr
