"""`mesh model list|rm|pin|export` against nodes that serve what was trained."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests import tiny_model
from tests.daemon.serving_mesh import ServingMesh, kept, serving_mesh, trained
from typer.testing import CliRunner, Result

from tiermesh.adapters.engines import served_model
from tiermesh.adapters.model_source import resolve
from tiermesh.cli.main import app


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(served_model, "TORCH", "tests.worker_fake")
    monkeypatch.setenv("TIERMESH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MESH_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("MESH_CONFIG", raising=False)
    monkeypatch.setattr("tiermesh.config.file.user_config_path", lambda _: tmp_path / "user")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[ServingMesh]:
    async with serving_mesh(tmp_path, "a", "b") as made:
        yield made


async def command(mesh: ServingMesh, node: str, *arguments: str) -> Result:
    """Run by somebody else than the loop that the mesh runs on."""
    env = {"MESH_URL": mesh[node].url, "MESH_TOKEN": mesh.token or ""}
    return await asyncio.to_thread(CliRunner().invoke, app, ["model", *arguments], env=env)


async def test_the_list_tells_what_was_trained_from_what_and_where(mesh: ServingMesh) -> None:
    result = await trained(mesh["a"], "pirate")
    await mesh["a"].serving.here.take(result)
    await mesh["b"].serving.here.take(result)
    shown = (await command(mesh, "b", "list")).stdout
    row = next(line.split() for line in shown.splitlines() if line.startswith("pirate"))
    assert row[:3] == ["pirate", "base", "(adapter)"]
    assert row[-3:] == [result.job, "a,", "b"]
    rows = json.loads((await command(mesh, "b", "list", "--json")).stdout)
    assert [one["trained"]["nodes"] for one in rows if one["trained"]] == [["a", "b"]]


async def test_an_export_is_the_adapter_byte_for_byte(mesh: ServingMesh, tmp_path: Path) -> None:
    await mesh["a"].serving.here.take(await trained(mesh["a"], "pirate:v1", weights=os.urandom(300_000)))
    done = await command(mesh, "b", "export", "pirate:v1", "--to", "out", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["kind"], told["base"], told["folder"]) == ("adapter", "base", str(tmp_path / "out"))
    kept_by_a = mesh["a"].serving.here.file("pirate:v1", "origin.json").parent
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in kept_by_a.iterdir()
    }
    again = await command(mesh, "b", "export", "pirate:v1", "--to", "out")
    assert (again.exit_code, again.stderr) == (
        1,
        f"mesh: --to: {tmp_path / 'out'} is there already; name a new folder\n",
    )


@pytest.mark.timeout(120)
async def test_an_export_may_be_merged_into_a_whole_model(mesh: ServingMesh, tmp_path: Path) -> None:
    base = tiny_model.build_folder(tmp_path / "tiny")
    adapter = tiny_model.build_adapter(tmp_path / "adapter", seed=1)
    facts = {"base": str(base), "base_digest": resolve(str(base)).digest}
    await mesh["a"].serving.here.take(await kept(mesh["a"], adapter, "poet", **facts))
    done = await command(mesh, "b", "export", "poet", "--to", "whole", "--merge")
    assert done.exit_code == 0, done.output
    assert resolve(str(tmp_path / "whole")).parameters == resolve(str(base)).parameters
    assert "whole: model," in done.stdout
    (base / "generation_config.json").write_text('{"eos_token_id": 7}')  # the base is another one now
    done = await command(mesh, "b", "export", "poet", "--to", "other", "--merge")
    assert done.exit_code == 1
    assert f"poet was trained on {base} with the digest {facts['base_digest']}, and" in done.stderr
    assert not (tmp_path / "other").exists()


async def test_a_model_is_kept_and_removed_from_every_node(mesh: ServingMesh) -> None:
    result = await trained(mesh["a"], "pirate")
    for name in ("a", "b"):
        await mesh[name].serving.here.take(result)
    assert (await command(mesh, "b", "pin", "pirate")).stdout == "pirate is kept on a, b\n"
    assert (await command(mesh, "a", "pin", "pirate", "--off")).stdout == "pirate may make room for others on a, b\n"
    assert (await command(mesh, "b", "rm", "pirate")).stdout == "pirate is removed from a, b\n"
    assert mesh["a"].models() == mesh["b"].models() == ["base"]
    for arguments in (("rm", "pirate"), ("pin", "pirate"), ("export", "pirate", "--to", "out")):
        done = await command(mesh, "b", *arguments)
        assert (done.exit_code, done.stderr.startswith("mesh: no node has a trained model pirate")) == (1, True)


async def test_damage_on_the_way_is_noticed_and_leaves_nothing(mesh: ServingMesh, tmp_path: Path) -> None:
    await mesh["a"].serving.here.take(await trained(mesh["a"], "pirate"))
    path = mesh["a"].serving.here.file("pirate", "adapter_model.safetensors")
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.unlink()  # it is a link to what is kept by its content
    path.write_bytes(content)
    done = await command(mesh, "b", "export", "pirate", "--to", "out")
    assert (done.exit_code, "adapter_model.safetensors came damaged" in done.stderr) == (1, True)
    assert not [name for name in os.listdir(tmp_path) if "out" in name]
