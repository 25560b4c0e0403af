"""Data, checkpoints and results on more than one node, whatever becomes of the nodes meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.copying_mesh import LIMIT_S, CopyingMesh, CopyingNode, copying_mesh, digest, new_job, save
from tests.daemon.still_mesh import until

from tiermesh.adapters.blobs import Blobs
from tiermesh.adapters.run_copy import PIECE_BYTES
from tiermesh.client import Data, RemoteClient, upload
from tiermesh.core.attempts import Checkpoint
from tiermesh.core.jobs import Dataset
from tiermesh.core.replicas import copy_order
from tiermesh.daemon import copies as module
from tiermesh.daemon import copy_leaving, copy_resuming, copy_sending
from tiermesh.daemon.copy_taking import KEPT, CheckpointOwner, checkpoints_of
from tiermesh.errors import BodyTooLarge, JobRefused, Unavailable
from tiermesh.protocol.artifacts import COPIES_PATH, Manifest
from tiermesh.protocol.run_folder import RunFolder
from tiermesh.protocol.ulid import make_ulid
from tiermesh.types import Health

DATA = b'{"text": "one"}\n' * 1000
DATASET = Dataset(digest(DATA), "faq.jsonl")


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[CopyingMesh]:
    async with copying_mesh(tmp_path, "one", "two", "three") as made, asyncio.timeout(LIMIT_S):
        yield made


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


async def copied(node: CopyingNode, job: str, run: RunFolder, *steps: int, attempt: int = 1, held_by: int = 2) -> None:
    """Save at each of `steps`, and wait each time until so many nodes hold it."""
    for step in steps:
        name = save(run, step)
        node.copies.checkpoint_saved(job, attempt, name, run, replicas=held_by - 1, open_data=False)
        await until(lambda step=step: bool(holders(node, job, step)[held_by - 1 :]))  # type: ignore[misc]


def holders(node: CopyingNode, job: str, step: int) -> tuple[str, ...]:
    """Who holds it by what was told last."""
    told = [one.holders for of, _, one in node.told if (of, one.step) == (job, step)]
    return told[-1] if told else ()


def kept(node: CopyingNode, job: str) -> list[int]:
    return [owner.step for owner in checkpoints_of(node.blobs, job)]


def others(mesh: CopyingMesh, job: str) -> list[CopyingNode]:
    return [node for name, node in mesh.nodes.items() if name != "one" and kept(node, job)]


# Data


async def test_data_goes_to_as_many_nodes_as_asked_for_and_stays_there(mesh: CopyingMesh) -> None:
    job = new_job()
    await mesh["one"].blobs.put_whole(DATA)
    held = await mesh["one"].copies.spread(job, [DATASET], 2, False)
    assert held[0] == mesh["one"].id
    assert len(held) == 2
    (copy,) = [node for node in mesh.nodes.values() if node.id == held[1]]
    assert DATASET.sha256 in copy.blobs.pinned(f"{job}.data")
    assert await mesh["one"].copies.spread(job, [DATASET], 2, False) == held, "said again, nothing is copied anew"
    assert len(mesh["one"].asked) == 2, "a list and a file"
    (last,) = [node for node in mesh.nodes.values() if node not in (copy, mesh["one"])]
    path = await last.copies.bring(job, DATASET, held)
    assert path.read_bytes() == DATA


async def test_data_is_found_although_its_holders_are_not_those_told(mesh: CopyingMesh) -> None:
    await mesh["three"].blobs.put_whole(DATA)
    path = await mesh["one"].copies.bring(new_job(), DATASET, [mesh["two"].id])
    assert path.read_bytes() == DATA


async def test_without_a_token_nothing_leaves_by_itself(tmp_path: Path, run: RunFolder) -> None:
    async with copying_mesh(tmp_path, "one", "two", token=None) as mesh, asyncio.timeout(LIMIT_S):
        one, job = mesh["one"], new_job()
        await one.blobs.put_whole(DATA)
        assert await one.copies.spread(job, [DATASET], 2, False) == (one.id,)
        one.copies.checkpoint_saved(job, 1, save(run, 5), run, replicas=1, open_data=False)
        await until(lambda: bool(one.told))
        await until(lambda: not one.copies._copying)
        assert (holders(one, job, 5), mesh["two"].files()) == ((one.id,), set())
        assert await one.copies.spread(job, [DATASET], 2, True) == (one.id, mesh["two"].id)


async def test_fewer_nodes_than_asked_for_are_no_error(mesh: CopyingMesh) -> None:
    await mesh["one"].blobs.put_whole(DATA)
    mesh.mark("two", "down")
    mesh["three"].draining = True
    mesh.mark("three", state="up")
    task = asyncio.create_task(mesh["one"].copies.spread(new_job(), [DATASET], 3, False))
    await asyncio.sleep(0.1)
    mesh.mark("three", "down")
    assert await task == (mesh["one"].id,)
    with pytest.raises(Unavailable, match="does not have the data"):
        await mesh["two"].copies.spread(new_job(), [DATASET], 2, False)


# Checkpoints


async def test_a_checkpoint_is_copied_as_it_is_written_and_older_ones_go(mesh: CopyingMesh, run: RunFolder) -> None:
    one, job = mesh["one"], new_job()
    await copied(one, job, run, 4, 8, 12, 16)
    (copy,) = others(mesh, job)
    assert kept(one, job) == kept(copy, job) == [12, 16]
    assert KEPT == 2
    assert [attempt for _, attempt, _ in one.told] == [1] * 4
    newest = one.told[-1][2]
    assert newest == Checkpoint(16, newest.artifact, (one.id, copy.id))
    pinned = frozenset().union(*(copy.blobs.pinned(str(owner)) for owner in checkpoints_of(copy.blobs, job)))
    assert copy.files() == pinned, "nothing of those that were dropped is left"


async def test_a_long_history_is_not_sent_again(mesh: CopyingMesh, run: RunFolder) -> None:
    one, job = mesh["one"], new_job()
    with run.events.open("w") as events:
        for number in range(2 * PIECE_BYTES // 100):
            events.write(json.dumps({"event": "warned", "message": f"{number:060d}"}) + "\n")
    await copied(one, job, run, 4)
    before = len(one.asked)
    await copied(one, job, run, 8)
    assert len(one.asked) - before == 4, "a list, tensors, facts, and the last piece of the events"


async def test_what_is_overtaken_is_not_copied(mesh: CopyingMesh, run: RunFolder) -> None:
    one, job = mesh["one"], new_job()
    for step in (4, 8, 12):
        one.copies.checkpoint_saved(job, 1, save(run, step), run, replicas=1, open_data=False)
    await until(lambda: len(holders(one, job, 12)) == 2)
    assert {checkpoint.step for _, _, checkpoint in one.told} <= {4, 12}


async def test_a_checkpoint_that_went_meanwhile_is_passed_over(mesh: CopyingMesh, run: RunFolder) -> None:
    one, job = mesh["one"], new_job()
    one.copies.checkpoint_saved(job, 1, "step-00000099", run, replicas=1, open_data=False)
    await until(lambda: not one.copies._copying)
    await copied(one, job, run, 4)
    assert [checkpoint.step for _, _, checkpoint in one.told] == [4]
    assert not [owner for owner in one.blobs.owners() if owner.endswith(module.MAKING)]


async def test_a_receiver_without_room_is_passed_over(
    mesh: CopyingMesh, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, job = mesh["one"], new_job()
    first = next(node for node in mesh.nodes.values() if node.id == copy_order(mesh.view, one.id, job)[0])
    monkeypatch.setattr(first.blobs._room, "_cap_bytes", 100)
    await copied(one, job, run, 4)
    (copy,) = others(mesh, job)
    assert copy is not first
    assert (first.files(), first.blobs.owners()) == (set(), [])


async def test_a_receiver_that_dies_is_replaced(mesh: CopyingMesh, run: RunFolder) -> None:
    one, job = mesh["one"], new_job()
    first = next(node for node in mesh.nodes.values() if node.id == copy_order(mesh.view, one.id, job)[0])
    assert first.runner is not None
    await first.runner.cleanup()
    one.copies.checkpoint_saved(job, 1, save(run, 4), run, replicas=1, open_data=False)
    await asyncio.sleep(0.1)
    mesh.mark(first.name, "down")
    await until(lambda: len(holders(one, job, 4)) == 2)
    assert first.id not in holders(one, job, 4)


async def test_a_receiver_to_which_nothing_comes_is_given_up(
    mesh: CopyingMesh, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_sending, "PATIENCE_S", 0.2)
    one, job = mesh["one"], new_job()
    one.faults = ["lie"] * 1000
    one.copies.checkpoint_saved(job, 1, save(run, 4), run, replicas=2, open_data=False)
    await until(lambda: bool(one.told) and not one.copies._copying, LIMIT_S)
    assert (holders(one, job, 4), mesh["two"].files(), mesh["three"].files()) == ((one.id,), set(), set())


async def test_an_attempt_that_was_replaced_brings_nothing(mesh: CopyingMesh, run: RunFolder) -> None:
    one, two, job = mesh["one"], mesh["two"], new_job()
    await copied(one, job, run, 4, attempt=2, held_by=3)
    two.copies.checkpoint_saved(job, 1, save(run, 400), run, replicas=2, open_data=False)
    await until(lambda: not two.copies._copying)
    assert kept(mesh["three"], job) == [4]


async def test_the_end_of_a_job_leaves_its_data_and_nothing_of_its_checkpoints(
    mesh: CopyingMesh, run: RunFolder
) -> None:
    one, job = mesh["one"], new_job()
    await one.blobs.put_whole(DATA)
    await one.copies.spread(job, [DATASET], 3, False)
    await copied(one, job, run, 4, 8, held_by=3)
    for node in mesh.nodes.values():
        node.over[job] = True
        node.copies.over(job)
        assert node.files() >= {DATASET.sha256}
        assert len(node.files()) == 2, "data and its list"
        assert node.blobs.owners() == []
        node.copies.over(job)
    one.copies.checkpoint_saved(job, 1, save(run, 12), run, replicas=1, open_data=False)
    await until(lambda: not one.copies._copying)
    assert one.blobs.owners() == []
    status, body, _ = await mesh.ask(
        "two",
        "POST",
        COPIES_PATH,
        json={"job": job, "kind": "checkpoint", "artifact": "0" * 64, "holders": [one.id], "attempt": 1, "step": 9},
        headers=one.passport.stamp,
    )
    assert (status, body["error"]["type"]) == (409, "stale_order")


async def test_what_a_job_left_is_found_later(
    mesh: CopyingMesh, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The news of a job's end may come while a node is away."""
    monkeypatch.setattr(copy_leaving, "TIDY_S", 0.02)
    one, job, forgotten = mesh["one"], new_job(), make_ulid(1_500_000_000_000, bytes(10))
    await copied(one, job, run, 4)
    one.blobs.pin(f"{forgotten}.data", [digest(b"")])
    one.blobs.pin("file.faq", [digest(b"")])
    one.copies.start()
    kept_now = [*(str(owner) for owner in checkpoints_of(one.blobs, job)), "file.faq"]
    await until(lambda: one.blobs.owners() == kept_now)
    one.over[job] = True
    await until(lambda: one.blobs.owners() == ["file.faq"])


async def test_who_only_has_copies_asks_the_coordinator_for_the_end(
    mesh: CopyingMesh, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_leaving, "TIDY_S", 0.02)
    one, two, job, other = mesh["one"], mesh["two"], new_job(), new_job()
    await copied(one, job, run, 4, held_by=3)
    two.blobs.pin(f"{other}.data", [digest(b"")])
    one.over[job] = True
    two.copies.start()
    await until(lambda: two.blobs.owners() == [f"{other}.data"])
    assert kept(mesh["three"], job) == [4]


async def test_a_disk_that_fails_for_a_while_stops_no_tidying(
    mesh: CopyingMesh, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, and tried again."""
    monkeypatch.setattr(copy_leaving, "TIDY_S", 0.02)
    one, job, failures = mesh["one"], new_job(), 0

    async def failing() -> None:
        nonlocal failures
        failures += 1
        if failures < 4:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(one.blobs, "tidy", failing)
    one.blobs.pin(f"{job}.data", [digest(b"")])
    one.over[job] = True
    one.copies.start()
    await until(lambda: one.blobs.owners() == [])
    assert failures >= 4
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in told] == [
        "copies that nobody needs are still here, which is tried again: [Errno 5] Input/output error"
    ]


async def test_who_has_an_old_record_asks_the_coordinator_for_the_end_too(
    mesh: CopyingMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every node that had a record is told of each change."""
    monkeypatch.setattr(copy_leaving, "TIDY_S", 0.02)
    one, two, job, other = mesh["one"], mesh["two"], new_job(), new_job()
    for each in (job, other):
        two.blobs.pin(f"{each}.data", [digest(b"")])
        two.over[each] = False
    one.over[job] = True
    two.copies.start()
    await until(lambda: two.blobs.owners() == [f"{other}.data"])


async def test_a_node_that_is_about_to_rest_waits_for_its_copies(mesh: CopyingMesh, run: RunFolder) -> None:
    one, job = mesh["one"], new_job()
    one.copies.checkpoint_saved(job, 1, save(run, 4), run, replicas=1, open_data=False)
    await one.copies.settled(job)
    assert len(holders(one, job, 4)) == 2
    await one.copies.settled(job)


# Going on elsewhere


async def test_a_run_goes_on_elsewhere_with_its_whole_story(mesh: CopyingMesh, run: RunFolder, tmp_path: Path) -> None:
    one, job = mesh["one"], new_job()
    await copied(one, job, run, 4, 8)
    told = run.events.read_bytes()
    save(run, 12)  # not copied: the node dies
    (copy,) = others(mesh, job)
    mesh.mark("one", "down")
    assert one.runner is not None
    await one.runner.cleanup()
    (last,) = [node for node in mesh.nodes.values() if node not in (one, copy)]
    checkpoint = one.told[-1][2]
    second = RunFolder(tmp_path / "second")
    await last.copies.prepare(job, 2, second, checkpoint)
    assert second.events.read_bytes() == told
    assert os.listdir(second.checkpoints / "step-00000008") != []
    assert second.latest.read_text() == "step-00000008\n"
    assert sorted(os.listdir(second.checkpoints)) == ["latest", "step-00000008"]
    assert [name for name in os.listdir(second.path) if name.startswith(".")] == []
    for name in os.listdir(run.checkpoints / "step-00000008"):
        path = Path("step-00000008") / name
        assert (second.checkpoints / path).read_bytes() == (run.checkpoints / path).read_bytes()

    save(second, 12)
    last.copies.checkpoint_saved(job, 2, "step-00000012", second, replicas=0, open_data=False)
    await until(lambda: bool(last.told))
    third = RunFolder(tmp_path / "third")
    await last.copies.prepare(job, 3, third, last.told[-1][2])
    assert third.events.read_bytes() == second.events.read_bytes()
    with third.events.open("a") as events:
        events.write("what comes then does not change what was copied\n")
    assert last.blobs.pinned(f"{job}{copy_resuming.RESUME}") == frozenset()


async def test_a_run_with_checkpoints_of_its_own_goes_on_from_them(
    mesh: CopyingMesh, run: RunFolder, tmp_path: Path
) -> None:
    one, job = mesh["one"], new_job()
    await copied(one, job, run, 4)
    own = RunFolder(tmp_path / "own")
    own.path.mkdir()
    save(own, 6)
    await mesh["two"].copies.prepare(job, 1, own, one.told[-1][2])
    assert sorted(os.listdir(own.checkpoints)) == ["latest", "step-00000006"]


async def test_preparing_that_was_broken_off_is_done_again(mesh: CopyingMesh, run: RunFolder, tmp_path: Path) -> None:
    one, job, second = mesh["one"], new_job(), RunFolder(tmp_path / "second")
    await copied(one, job, run, 4)
    (second.path / ".going-on" / "checkpoints").mkdir(parents=True)
    second.checkpoints.mkdir()
    await mesh["two"].copies.prepare(job, 2, second, one.told[-1][2])
    assert sorted(os.listdir(second.path)) == ["checkpoints", "events.jsonl"]


async def test_with_early_stopping_the_best_goes_along(mesh: CopyingMesh, run: RunFolder, tmp_path: Path) -> None:
    one, job, second = mesh["one"], new_job(), RunFolder(tmp_path / "second")
    save(run, 4, loss=1.0)
    save(run, 8, loss=2.0)
    spec: dict[str, Any] = {"model_name": "m", "dataset_path": "/d", "eval_fraction": 0.1, "eval_interval": 4}
    spec["early_stop"] = {"patience": 3}
    run.plan.write_text(json.dumps({"spec": spec, "model_path": "/m", "data_path": "/d"}))
    run.read_plan()
    one.copies.checkpoint_saved(job, 1, save(run, 12, loss=1.5), run, replicas=1, open_data=False)
    await until(lambda: len(holders(one, job, 12)) == 2)
    await mesh["two"].copies.prepare(job, 2, second, one.told[-1][2])
    assert sorted(os.listdir(second.checkpoints)) == ["latest", "step-00000004", "step-00000012"]
    assert second.latest.read_text() == "step-00000012\n"


HOSTILE = [
    {"checkpoints/evil/x": b"1"},
    {"checkpoints/step-00000004": b"1"},
    {"elsewhere/x": b"1"},
    {"events/00000": b"1"},
    {"checkpoints/step-00000004/x": b"1", "checkpoints/latest": b"1"},
]


@pytest.mark.parametrize("files", HOSTILE)
async def test_what_is_no_checkpoint_prepares_nothing(
    mesh: CopyingMesh, tmp_path: Path, files: dict[str, bytes]
) -> None:
    listed = []
    for name, content in files.items():
        listed.append({"name": name, "sha256": await mesh["one"].blobs.put_whole(content), "size_bytes": len(content)})
    manifest = Manifest.read(json.dumps({"files": listed}).encode())
    artifact = await mesh["one"].blobs.put_whole(manifest.encoded())
    second = RunFolder(tmp_path / "second")
    assert not await mesh["two"].copies.prepare(new_job(), 2, second, Checkpoint(4, artifact, (mesh["one"].id,)))
    assert not second.path.exists()


async def test_a_checkpoint_that_nobody_gives_is_waited_for_and_then_done_without(
    mesh: CopyingMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, second, two = new_job(), RunFolder(tmp_path / "second"), mesh["two"]
    gone = Checkpoint(4, "0" * 64, (mesh["one"].id,))
    with pytest.raises(Unavailable, match="no node gives"):
        await two.copies.prepare(job, 2, second, gone)
    monkeypatch.setattr(copy_resuming, "GIVE_UP_S", 0.0)
    with pytest.raises(Unavailable):
        await two.copies.prepare(job, 2, second, gone)  # whoever has it is there
    mesh.mark("one", "down")
    assert not await two.copies.prepare(job, 2, second, gone)
    assert (two.blobs.owners(), second.path.exists()) == ([], False)


async def test_where_the_newest_is_gone_an_earlier_one_that_is_kept_here_will_do(
    mesh: CopyingMesh, run: RunFolder, tmp_path: Path
) -> None:
    one, job, second = mesh["one"], new_job(), RunFolder(tmp_path / "second")
    await copied(one, job, run, 4)
    (copy,) = others(mesh, job)
    assert await copy.copies.prepare(job, 2, second, Checkpoint(8, "0" * 64, (one.id,)))
    assert second.latest.read_text() == "step-00000004\n"


async def test_what_a_disk_spoiled_is_fetched_anew(mesh: CopyingMesh, run: RunFolder, tmp_path: Path) -> None:
    one, job, second = mesh["one"], new_job(), RunFolder(tmp_path / "second")
    await copied(one, job, run, 4)
    (copy,) = others(mesh, job)
    tensors = digest((run.checkpoints / "step-00000004" / "tensors.safetensors").read_bytes())
    spoil(copy.folder / "blobs" / tensors)
    assert await copy.copies.prepare(job, 2, second, one.told[-1][2])
    assert digest((second.checkpoints / "step-00000004" / "tensors.safetensors").read_bytes()) == tensors


@pytest.mark.parametrize("what", ["the list", "the tensors"])
async def test_what_a_disk_spoiled_and_nobody_gives_is_done_without(
    mesh: CopyingMesh, run: RunFolder, tmp_path: Path, what: str
) -> None:
    one, job, second = mesh["one"], new_job(), RunFolder(tmp_path / "second")
    await copied(one, job, run, 4)
    await copied(one, job, run, 8)
    newest = one.told[-1][2]
    (copy,) = [node for node in others(mesh, job) if len(checkpoints_of(node.blobs, job)) == 2]
    tensors = digest((run.checkpoints / "step-00000008" / "tensors.safetensors").read_bytes())
    for node in (one, copy):
        spoil(node.folder / "blobs" / (newest.artifact if what == "the list" else tensors))
    assert await copy.copies.prepare(job, 2, second, newest)
    assert second.latest.read_text() == "step-00000004\n"


def spoil(path: Path) -> None:
    """One byte, after it was found to be sound."""
    path.write_bytes(b"!" + path.read_bytes()[1:])


async def test_no_room_for_it_here_is_no_fault_of_the_job(
    mesh: CopyingMesh, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, job = mesh["one"], new_job()
    await one.blobs.put_whole(DATA)
    await copied(one, job, run, 4)
    (last,) = [node for node in mesh.nodes.values() if node not in (one, *others(mesh, job))]
    monkeypatch.setattr(last.blobs._room, "_cap_bytes", 100)
    with pytest.raises(JobRefused, match="no room for its checkpoint"):
        await last.copies.prepare(job, 2, RunFolder(tmp_path / "second"), one.told[-1][2])
    with pytest.raises(JobRefused, match=r"no room for faq\.jsonl"):
        await last.copies.bring(job, DATASET, [one.id])


CHANGES = [
    ({"learning_rate": 1e-5}, True),
    ({"micro_batch_size": 2, "gradient_accumulation_steps": 2}, True),
    ({"eval_path": "/elsewhere/x.jsonl"}, True),
    ({"micro_batch_size": 2}, False),
    ({"method": "qlora"}, False),
    ({"seq_len": 128}, False),
]


@pytest.mark.parametrize(("change", "goes_on"), CHANGES)
async def test_what_a_run_is_not_goes_on_from_its_checkpoint_or_begins_anew(
    mesh: CopyingMesh, run: RunFolder, tmp_path: Path, change: dict[str, object], goes_on: bool
) -> None:
    one, job, second = mesh["one"], new_job(), RunFolder(tmp_path / "second")
    spec: dict[str, object] = {"method": "lora", "seq_len": 64, "micro_batch_size": 4, "learning_rate": 1e-4}
    name = save(run, 4, spec=spec)
    one.copies.checkpoint_saved(job, 1, name, run, replicas=1, open_data=False)
    await until(lambda: bool(one.told))
    assert await mesh["two"].copies.prepare(job, 2, second, one.told[-1][2], spec | change) is goes_on
    assert second.path.exists() is goes_on


# Results


async def test_a_result_is_pushed_and_fetched_as_a_folder(mesh: CopyingMesh, run: RunFolder, tmp_path: Path) -> None:
    one, two, job = mesh["one"], mesh["two"], new_job()
    run.result.mkdir()
    (run.result / "adapter_model.safetensors").write_bytes(DATA)
    (run.result / "adapter_config.json").write_text("{}")
    (run.result / ".lock").write_text("")
    (run.result / "link").symlink_to("/etc/passwd")
    artifact = await one.copies.result(job, run)
    assert await one.copies.result(job, run) == artifact
    assert await one.copies.send_result(job, artifact, [one.id, two.id]) == (one.id, two.id)
    one.over[job] = True
    one.copies.over(job)
    two.copies.over(job)
    await mesh["three"].copies.result_folder(job, artifact, [two.id], tmp_path / "served" / "faq")
    assert sorted(os.listdir(tmp_path / "served" / "faq")) == ["adapter_config.json", "adapter_model.safetensors"]
    await mesh["three"].copies.result_folder(job, artifact, [], tmp_path / "served" / "faq")
    two.copies.forget_result(job)
    assert (two.files(), two.blobs.owners()) == (set(), [])
    with pytest.raises(FileNotFoundError):
        await one.copies.result(job, RunFolder(tmp_path / "nothing"))


# Doors


async def test_an_upload_in_pieces_over_http(mesh: CopyingMesh) -> None:
    path, half = f"/api/data/{DATASET.sha256}", len(DATA) // 2
    stream = {"Content-Type": "application/octet-stream"}

    async def put(first: int, content: bytes, total: int = len(DATA)) -> tuple[int, Any]:
        told = {"Content-Range": f"bytes {first}-{first + len(content) - 1}/{total}"}
        status, body, _ = await mesh.ask("one", "PUT", path, data=content, headers=stream | told)
        return status, body

    assert (await mesh.ask("one", "GET", path))[0] == 404
    assert await put(0, DATA[:half]) == (
        200,
        {"sha256": DATASET.sha256, "size_bytes": half, "whole": False, "coming": False},
    )
    status, _, headers = await mesh.ask("one", "HEAD", path)
    assert (status, headers["Upload-Offset"], headers["Upload-Complete"]) == (200, str(half), "?0")
    status, body = await put(0, DATA)
    assert (status, body["error"]["type"]) == (409, "wrong_offset")
    assert (await put(half, DATA[half:]))[1]["whole"] is True
    assert (await mesh.ask("one", "HEAD", path))[2]["Upload-Complete"] == "?1"
    assert mesh["one"].files() == {DATASET.sha256}


class BadLine:
    """Between a client and a node: each connection breaks after the next of `cuts`, in bytes from the client."""

    def __init__(self, url: str, cuts: list[int]) -> None:
        self._host, _, self._port = url.removeprefix("http://").partition(":")
        self.cuts = cuts
        self.sent = 0

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *raised: object) -> None:
        self._server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, int(self._port))
        returning = asyncio.create_task(self._return(there, writer))
        left = self.cuts.pop(0) if self.cuts else 1 << 40
        while left > 0 and (chunk := await reader.read(min(left, 1 << 16))):
            left -= len(chunk)
            self.sent += len(chunk)
            back.write(chunk)
            await back.drain()
        for end in (back, writer):
            end.transport.abort()
        await asyncio.gather(returning, return_exceptions=True)

    async def _return(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await there.read(1 << 16):
            writer.write(chunk)


async def test_who_asks_is_told_that_it_is_being_sent(mesh: CopyingMesh) -> None:
    path = f"/api/data/{DATASET.sha256}"
    goes_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        await goes_on.wait()
        yield DATA

    sending = asyncio.create_task(mesh["one"].blobs.put_part(DATASET.sha256, slow(), offset=0, total_bytes=len(DATA)))
    await asyncio.sleep(0)
    status, body, _ = await mesh.ask("one", "GET", path)
    assert (status, body["size_bytes"], body["coming"], body["whole"]) == (200, 0, True, False)
    goes_on.set()
    await sending
    assert (await mesh.ask("one", "GET", path))[1] == {
        "sha256": DATASET.sha256,
        "size_bytes": len(DATA),
        "whole": True,
        "coming": False,
    }


async def test_a_client_goes_on_where_its_connection_broke(
    mesh: CopyingMesh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(upload, "PIECE_BYTES", 1 << 20)
    monkeypatch.setattr(upload, "AGAIN_S", 0.02)
    content = os.urandom((5 << 20) + 17)
    (tmp_path / "faq.jsonl").write_bytes(content)
    line = BadLine(mesh["one"].url, [300_000, 700_000, 3_000_000])
    async with line as url, RemoteClient(url, token=mesh.token) as client:
        assert await upload.upload(client, Data(tmp_path / "faq.jsonl")) == digest(content)
        sent = line.sent
        assert await upload.upload(client, Data(tmp_path / "faq.jsonl")) == digest(content)
    assert line.sent - sent < 1000, "not sent again"
    assert line.cuts == []
    assert sent <= len(content) + 3 * (1 << 20) + 20_000, "what was lost at a break is a piece at most"
    assert mesh["one"].blobs.find(digest(content)) is not None


async def test_a_client_hears_at_once_that_there_is_no_room(mesh: CopyingMesh, tmp_path: Path) -> None:
    with (tmp_path / "huge.jsonl").open("wb") as file:
        file.truncate(80 << 30)
    async with RemoteClient(mesh["one"].url, token=mesh.token) as client:
        huge = Data(tmp_path / "huge.jsonl")
        huge.sha256 = lambda: asyncio.sleep(0, "0" * 64)  # type: ignore[method-assign]
        with pytest.raises(BodyTooLarge, match="more than the 68,719,476,736 that this node keeps"):
            await upload.upload(client, huge)
    assert mesh["one"].files() == set()


BAD_UPLOADS = [
    ({"Content-Range": "bytes 0-9/10000000000000"}, b"x" * 10, 413, "body_too_large"),
    ({"Content-Range": "bytes 0-8/100"}, b"x" * 10, 400, "invalid_request"),
    ({"Content-Range": "bytes 9-0/100"}, b"x" * 10, 400, "invalid_request"),
    ({"Content-Range": "bytes 0-9/5"}, b"x" * 10, 400, "invalid_request"),
    ({"Content-Range": "lines 0-9/10"}, b"x" * 10, 400, "invalid_request"),
    ({"Content-Range": "bytes 0-9/10"}, b"x" * 10, 400, "data_unusable"),
    ({"Content-Range": "bytes 5-14/100"}, b"x" * 10, 409, "wrong_offset"),
    ({}, b"x" * 10, 400, "data_unusable"),
    ({}, b"", 400, "data_unusable"),
    ({"Content-Type": "application/json"}, b"{}", 415, "wrong_content_type"),
]


@pytest.mark.parametrize(("headers", "content", "status", "kind"), BAD_UPLOADS)
async def test_a_bad_upload_is_told_and_leaves_nothing(
    mesh: CopyingMesh, headers: dict[str, str], content: bytes, status: int, kind: str
) -> None:
    sent = {"Content-Type": "application/octet-stream"} | headers
    found, body, _ = await mesh.ask("one", "PUT", f"/api/data/{DATASET.sha256}", data=content, headers=sent)
    assert (found, body["error"]["type"]) == (status, kind), body
    assert mesh["one"].files() == set()


BAD_ORDERS = [
    {"job": "../x"},
    {"kind": "all"},
    {"artifact": "x"},
    {"holders": []},
    {"holders": ["http://elsewhere"]},
    {"step": -1},
    {"attempt": 1.5},
]


@pytest.mark.parametrize("wrong", BAD_ORDERS)
async def test_a_bad_order_to_copy_is_refused(mesh: CopyingMesh, wrong: dict[str, object]) -> None:
    good = {"job": new_job(), "kind": "data", "artifact": "0" * 64, "holders": [mesh["one"].id]}
    stamp = mesh["one"].passport.stamp
    status, body, _ = await mesh.ask("two", "POST", COPIES_PATH, json=good | wrong, headers=stamp)
    assert (status, body["error"]["type"]) == (400, "invalid_request")
    assert mesh["two"].blobs.owners() == []


async def test_a_copy_that_nobody_gives_leaves_nothing(mesh: CopyingMesh) -> None:
    order = {"job": new_job(), "kind": "data", "artifact": "0" * 64, "holders": [mesh["one"].id]}
    status, body, _ = await mesh.ask("two", "POST", COPIES_PATH, json=order, headers=mesh["one"].passport.stamp)
    assert (status, body["error"]["type"]) == (503, "unavailable")
    assert (mesh["two"].files(), mesh["two"].blobs.owners()) == (set(), [])


# Who is asked first


def test_who_has_much_of_it_is_asked_first_and_who_trains_last(mesh: CopyingMesh) -> None:
    one, two, three = (mesh[name] for name in ("one", "two", "three"))
    job = new_job()
    assert {*copy_order(mesh.view, one.id, job)} == {two.id, three.id}
    mesh.mark("two", training="faq")
    assert copy_order(mesh.view, one.id, job) == (three.id, two.id)
    assert copy_order(mesh.view, one.id, job, {two.id}) == (two.id, three.id)
    mesh.mark("two", training="", health=Health(40))
    assert copy_order(mesh.view, one.id, job) == (three.id, two.id)
    mesh.mark("three", "down")
    mesh.mark("two", "draining")
    assert copy_order(mesh.view, one.id, job) == ()


def test_jobs_spread_over_nodes(mesh: CopyingMesh) -> None:
    firsts = {copy_order(mesh.view, mesh["one"].id, f"job {number}")[0] for number in range(50)}
    assert firsts == {mesh["two"].id, mesh["three"].id}


def test_owners_sort_by_age() -> None:
    job = new_job()
    made = [CheckpointOwner(job, *key, "a" * 64) for key in ((1, 9), (1, 10), (2, 1), (10, 1))]
    assert sorted(made) == made
    assert [CheckpointOwner.read(str(owner)) for owner in made] == made
    assert CheckpointOwner.read(f"{job}.data") is None


def test_the_store_takes_owners_of_any_length_that_is_made(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    blobs.open()
    owner = str(CheckpointOwner(new_job(), 999_999, 999_999_999, "a" * 64))
    blobs.pin(owner, [])
    assert blobs.owners() == [owner]
