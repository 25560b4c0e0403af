"""`mesh config`: the policy of the whole mesh."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from tests.cli.conftest import Mesh
from tests.mesh_fake import FakeMesh

from tiermesh.config import PolicyDocument, load


def test_show_prints_what_apply_reads(home: Path, fake: FakeMesh, mesh: Mesh) -> None:
    fake.policy = {"routing": {"aliases": {"gpt-4o": "qwen"}}, "of_the_future": 1}
    done = mesh("config", "show")
    assert done.stdout.startswith("# policy 3.2 of the mesh\n")
    assert yaml.safe_load(done.stdout) == PolicyDocument.from_body(fake.policy).to_body()
    (home / "shown.yaml").write_text(done.stdout)
    assert load(home / "shown.yaml").policy() == PolicyDocument.from_body(fake.policy)


def test_apply_says_what_changes(home: Path, fake: FakeMesh, mesh: Mesh) -> None:
    fake.policy = {"routing": {"prefer_local": False}}
    (home / "new.yaml").write_text(
        "name: mine\nrouting: {fallback_strategy: strict, aliases: {a: b}}\ncoordinator: {min_members: 2}\n"
    )
    done = mesh("config", "apply", "new.yaml")
    assert (done.exit_code, done.stdout.splitlines()) == (
        0,
        [
            "coordinator.min_members: 1 -> 2",
            'routing.aliases.a: nothing -> "b"',
            'routing.fallback_strategy: "graceful" -> "strict"',
            "routing.prefer_local: false -> true",
        ],
    )
    assert fake.policy == load(home / "new.yaml").policy().to_body()
    assert "name" not in fake.policy


def test_applying_the_same_again_changes_nothing(home: Path, fake: FakeMesh, mesh: Mesh) -> None:
    (home / "same.yaml").write_text("")
    done = mesh("config", "apply", "same.yaml")
    assert done.stdout == "nothing to change: the mesh has this policy already\n"
    assert fake.bodies("/api/config") == [None]
    assert json.loads(mesh("config", "apply", "same.yaml", "--json").stdout)["version"] == 2


def test_a_mistake_in_the_file_is_found_before_the_mesh_is_asked(home: Path, fake: FakeMesh, mesh: Mesh) -> None:
    (home / "bad.yaml").write_text("routing: {fallback_strategy: maybe}")
    done = mesh("config", "apply", "bad.yaml")
    assert (done.exit_code, done.stderr) == (
        2,
        "mesh: bad.yaml: routing.fallback_strategy is 'maybe', but must be 'graceful' or 'strict'\n",
    )
    assert mesh("config", "apply", "none.yaml").exit_code == 2
    assert fake.requests == []
