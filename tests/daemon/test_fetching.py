"""Files from other nodes: whatever holders do, what comes is what the digest says, and time is bounded by progress."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.daemon.copying_mesh import LIMIT_S, CopyingMesh, CopyingNode, copying_mesh, digest

from tiermesh.adapters import fetching, room
from tiermesh.errors import BodyTooLarge, DataUnusable, Unavailable
from tiermesh.protocol.artifacts import BLOBS_PATH, ArtifactFile, Manifest
from tiermesh.types import NodeId

CONTENT = secrets.token_bytes(3 << 20)
DIGEST = digest(CONTENT)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[CopyingMesh]:
    async with copying_mesh(tmp_path, "one", "two", "me") as made, asyncio.timeout(LIMIT_S):
        yield made


async def have(content: bytes, *nodes: CopyingNode) -> str:
    for node in nodes:
        await node.blobs.put_whole(content)
    return digest(content)


async def fetch(mesh: CopyingMesh, sha256: str, *holders: str, size_bytes: int | None = None) -> bytes:
    found = [mesh[name].holder for name in holders]
    return (await mesh["me"].copies.fetcher.fetch(sha256, found, size_bytes=size_bytes)).read_bytes()


async def test_a_file_comes_from_who_has_it(mesh: CopyingMesh) -> None:
    await have(CONTENT, mesh["two"])
    assert await fetch(mesh, DIGEST, "one", "two") == CONTENT
    assert await fetch(mesh, DIGEST) == CONTENT, "it is here by now"


async def test_asked_for_by_many_it_comes_once(mesh: CopyingMesh) -> None:
    await have(CONTENT, mesh["one"])
    assert len({*await asyncio.gather(*(fetch(mesh, DIGEST, "one") for _ in range(5)))}) == 1
    assert len(mesh["one"].asked) == 1


async def test_a_break_is_gone_on_after_where_it_was(mesh: CopyingMesh) -> None:
    await have(CONTENT, mesh["one"])
    mesh["one"].faults = ["cut:1500000"]
    assert await fetch(mesh, DIGEST, "one") == CONTENT
    first, second = (asked for _, asked in mesh["one"].asked)
    assert first == ""
    assert 0 < int(second.removeprefix("bytes=")[:-1]) <= 1500000


async def test_another_holder_goes_on_where_one_ended(mesh: CopyingMesh) -> None:
    await have(CONTENT, mesh["one"], mesh["two"])
    mesh["one"].faults = ["cut:1500000", "away", "away"]
    assert await fetch(mesh, DIGEST, "one", "two") == CONTENT
    (_, asked) = mesh["two"].asked[0]
    assert int(asked.removeprefix("bytes=")[:-1]) > 0


@pytest.mark.parametrize("fault", ["lie", "short", "away"])
async def test_a_holder_that_gives_something_else_is_left(mesh: CopyingMesh, fault: str) -> None:
    await have(CONTENT, mesh["one"], mesh["two"])
    mesh["one"].faults = [fault] * 9
    assert await fetch(mesh, DIGEST, "one", "two", size_bytes=len(CONTENT)) == CONTENT


async def test_what_one_spoiled_is_begun_anew(mesh: CopyingMesh) -> None:
    await have(CONTENT, mesh["one"])
    await mesh["me"].blobs.put_part(DIGEST, _once(b"spoiled"), offset=0, total_bytes=len(CONTENT))
    assert await fetch(mesh, DIGEST, "one") == CONTENT
    assert mesh["me"].files() == {DIGEST}


async def test_who_drips_is_left_in_time(mesh: CopyingMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PROGRESS_S", 0.2)
    await have(CONTENT, mesh["one"], mesh["two"])
    mesh["one"].faults = ["drip"] * 9
    assert await fetch(mesh, DIGEST, "one", "two") == CONTENT


async def test_nobody_has_it(mesh: CopyingMesh) -> None:
    stranger = fetching.Holder(NodeId("f" * 32), mesh["one"].holder.addresses)
    with pytest.raises(Unavailable, match="does not have it"):
        await fetch(mesh, DIGEST, "one", "two")
    with pytest.raises(Unavailable, match="another node answers there"):
        await mesh["me"].copies.fetcher.fetch(DIGEST, [stranger])
    with pytest.raises(Unavailable, match="nobody has it"):
        await fetch(mesh, DIGEST)
    assert mesh["me"].files() == set()


async def test_an_artifact_becomes_a_folder_whole_or_not_at_all(mesh: CopyingMesh, tmp_path: Path) -> None:
    one, me = mesh["one"], mesh["me"]
    files = {"weights/a.bin": CONTENT, "config.json": b"{}", "empty.txt": b""}
    manifest = Manifest.of(ArtifactFile(name=n, sha256=digest(c), size_bytes=len(c)) for n, c in files.items())
    await have(CONTENT, one)
    artifact = await have(manifest.encoded(), one)
    with pytest.raises(Unavailable):
        await me.copies.fetcher.folder(artifact, [one.holder], tmp_path / "result", owner="JOB")
    assert not (tmp_path / "result").exists()
    await have(b"{}", one)
    await me.copies.fetcher.folder(artifact, [one.holder], tmp_path / "result", owner="JOB")
    assert {name: (tmp_path / "result" / name).read_bytes() for name in files} == files
    assert {name for name in os.listdir(tmp_path) if "result" in name} == {"result"}
    assert me.blobs.pinned("JOB") == {artifact, *(file.sha256 for file in manifest.files)}
    assert [prefix for prefix, _ in one.asked].count(DIGEST[:8]) == 1


async def test_what_does_not_fit_is_refused_before_a_byte_of_it(mesh: CopyingMesh) -> None:
    file = {"name": "a", "sha256": DIGEST, "size_bytes": 1 << 45}
    artifact = await have(json.dumps({"files": [file]}).encode(), mesh["one"])
    with pytest.raises(BodyTooLarge, match="more than the"):
        await mesh["me"].copies.fetcher.artifact(artifact, [mesh["one"].holder], owner="JOB")
    assert [prefix for prefix, _ in mesh["one"].asked] == [artifact[:8]]


NO_NAMES = ["/etc/passwd", "../x", "a/../b", "a//b", "./a", ".ssh/x", "a\\b", "a\0", "a/", "", "C:x", "x" * 300]
NO_NAMES += ["a/" * 20 + "b", "~/x", "a\nb", "-rf/..", "CON ", "a."]
HOSTILE = [
    b"",
    b"[]",
    b"\0" * 100,
    b'{"files": []}',
    *(json.dumps({"files": [{"name": name, "sha256": DIGEST, "size_bytes": 1}]}).encode() for name in NO_NAMES),
    json.dumps({"files": [{"name": n, "sha256": DIGEST, "size_bytes": 1} for n in ("a", "A")]}).encode(),
    json.dumps({"files": [{"name": n, "sha256": DIGEST, "size_bytes": 1} for n in ("a", "a/b")]}).encode(),
    json.dumps({"files": [{"name": str(n), "sha256": DIGEST, "size_bytes": 1} for n in range(5000)]}).encode(),
    json.dumps({"files": [{"name": "a", "sha256": "../" + DIGEST[3:], "size_bytes": 1}]}).encode(),
    json.dumps({"files": [{"name": "a", "sha256": DIGEST, "size_bytes": -1}]}).encode(),
]


@pytest.mark.parametrize("content", HOSTILE)
def test_a_hostile_manifest_is_none(content: bytes) -> None:
    with pytest.raises(DataUnusable, match="manifest"):
        Manifest.read(content)


NAMES = ["adapter_model.safetensors", "chat_template.jinja", "a/b/c.json", "model-00001-of-00002.bin", "Größe (1).txt"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_real_files_are_taken(name: str) -> None:
    manifest = Manifest.of([ArtifactFile(name=name, sha256=DIGEST, size_bytes=1)])
    assert Manifest.read(manifest.encoded()) == manifest
    assert manifest.artifact == digest(manifest.encoded())


async def test_a_manifest_that_lies_about_sizes_is_not_used(mesh: CopyingMesh) -> None:
    await have(CONTENT, mesh["one"])
    lying = Manifest.of([ArtifactFile(name="a", sha256=DIGEST, size_bytes=5)])
    artifact = await have(lying.encoded(), mesh["one"])
    with pytest.raises(Unavailable, match="3,145,728 bytes, not 5"):
        await mesh["me"].copies.fetcher.artifact(artifact, [mesh["one"].holder], owner="JOB")
    await have(CONTENT, mesh["me"])
    with pytest.raises(DataUnusable, match="which it has not"):
        await mesh["me"].copies.fetcher.artifact(artifact, [mesh["one"].holder], owner="JOB")


async def test_a_full_disk_here_is_told_at_once(mesh: CopyingMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    await have(CONTENT, mesh["one"])
    monkeypatch.setattr(room, "FREE_RESERVE_BYTES", 1 << 60)
    with pytest.raises(BodyTooLarge, match="disk"):
        await fetch(mesh, DIGEST, "one", "two")
    assert len(mesh["one"].asked) == 1
    assert mesh["me"].files() == set()


async def test_the_door_for_files_is_for_peers(mesh: CopyingMesh) -> None:
    await have(CONTENT, mesh["one"])
    path = BLOBS_PATH + DIGEST
    status, body, _ = await mesh.ask("one", "GET", path)
    assert (status, body["error"]["type"]) == (403, "forbidden")
    stamp = mesh["two"].passport.headers
    async with mesh.http.get(mesh["one"].url + path, headers=stamp | {"Range": "bytes=5-9"}) as reply:
        assert (reply.status, await reply.read()) == (206, CONTENT[5:10])
    async with mesh.http.get(mesh["one"].url + path, headers=stamp | {"Authorization": "Bearer wrong"}) as reply:
        assert reply.status == 401
    async with mesh.http.get(mesh["one"].url + BLOBS_PATH + "../" + DIGEST, headers=stamp) as reply:
        assert reply.status == 404


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
