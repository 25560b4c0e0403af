"""What disks and senders do wrong costs no job that was acknowledged: each of these spoils something, and counts what
is left of the jobs, and what people are told.

Daemons are real, on loopback; the disks are file systems of their own (tests/network/disk), where this machine mounts
some.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests import tiny_model
from tests.network.disk import Disk
from tests.network.job_mesh import (
    MODEL,
    OVER,
    SPEC,
    TOKEN,
    JobMesh,
    Refused,
    job_mesh,
    new_id,
    results,
    rows,
    tried_model,
)
from tests.network.lan import Lan

from tiermesh.core.jobs import job_from_dict

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NOBODY = SPEC | {"target_gpu": "tier:2"}
"""For a tier that nobody here is of, and that somebody may join: such a job waits."""
INTERVAL = 100
LONG = SPEC | {"max_steps": 6 * INTERVAL, "num_epochs": 1000, "save_interval": INTERVAL}
"""Half a minute of training on two cores that do other things too."""
OVER_S = 400.0
MINUTE_S = 60.0
WAITS = "waits"
HEARD_S = 120.0
STORE = "state.db"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing is trained with it."""
    return tiny_model.build_folder(tmp_path_factory.mktemp("model") / MODEL)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what trials of it found out."""
    return tried_model(tmp_path_factory.mktemp("tried"), LONG)


def garbage(state: Path) -> None:
    fold(state)
    (state / STORE).write_bytes(b"\xa5" * 40_000)


def half(state: Path) -> None:
    """What a copy that broke off leaves."""
    fold(state)
    with (state / STORE).open("r+b") as file:
        file.truncate((state / STORE).stat().st_size // 2)


def log_alone(state: Path) -> None:
    """The write-ahead log, which has all that was written since it was folded into the file."""
    log = state / f"{STORE}-wal"
    assert log.stat().st_size > 0
    log.write_bytes(b"\xa5" * log.stat().st_size)


def fold(state: Path) -> None:
    """All of the write-ahead log goes into the file, which alone it would mend."""
    with closing(sqlite3.connect(state / STORE)) as store:
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def test_a_spoilt_store_is_set_aside_and_the_jobs_come_again(tmp_path: Path, model: Path) -> None:
    async with job_mesh(tmp_path, model, jobs={"replicas": 3}) as jobs:
        known = await ended_and_waiting(jobs)
        leader = jobs.mesh.coordinator()
        first, second = jobs.mesh.others(leader)
        for node, spoil in ((first, garbage), (second, half), (leader, garbage), (first, log_alone)):
            await spoilt(jobs, {node: spoil}, known)
        await spoilt(jobs, {first: half, second: garbage}, known)


async def test_what_was_sent_wrong_leaves_nothing(tmp_path: Path, model: Path) -> None:
    content = rows().encode()
    digest, size = hashlib.sha256(content).hexdigest(), len(content)
    async with job_mesh(tmp_path, model, 1) as jobs:
        before = kept(jobs, 0)

        async def refused(how: str, status: int, kind: str, body: bytes, **headers: str) -> None:
            told = await put(jobs, 0, digest, body, headers)
            assert told[:2] == (status, kind), how
            await until(lambda: kept(jobs, 0) == before, f"nothing is left of what was {how}")

        await refused("changed", 400, "data_unusable", content.upper())
        await refused("cut and closed", 400, "data_unusable", content[:-10])
        await refused("empty", 400, "data_unusable", b"")
        await refused("too large", 413, "body_too_large", b"{", **{"Content-Range": f"bytes 0-0/{10 << 40}"})
        await refused("begun in the middle", 409, "wrong_offset", b"{", **{"Content-Range": f"bytes 9-9/{size}"})
        await break_off(jobs, 0, digest, content)
        await until(lambda: kept(jobs, 0) == before, "nothing is left of what broke off")

        half = size // 2
        told = await put(jobs, 0, digest, content[:half], {"Content-Range": f"bytes 0-{half - 1}/{size}"})
        assert told[0] == 200
        rest = {"Content-Range": f"bytes {half}-{size - 1}/{size}"}
        await refused("changed in its second half", 400, "data_unusable", content[half:].upper(), **rest)

        with pytest.raises(Refused) as why:
            await jobs.submit(0, NOBODY, data={"name": "rows.jsonl", "sha256": digest})
        assert (why.value.status, "send it first" in str(why.value)) == (400, True)
        assert (await jobs.ask(0, "GET", "/api/jobs"))["jobs"] == []
        assert (await put(jobs, 0, digest, content, {}))[0] == 200
        await jobs.submit(0, NOBODY, data={"name": "rows.jsonl", "sha256": digest})


async def test_a_full_disk_takes_nothing_and_loses_nothing(
    tmp_path: Path, model: Path, make_disk: Callable[[Path], Disk]
) -> None:
    disks = {node: make_disk(tmp_path / f"n{node}" / "state") for node in range(3)}
    async with job_mesh(tmp_path, model, disks=disks) as jobs:
        known = await ended_and_waiting(jobs, 2)
        leader = jobs.mesh.coordinator()
        full, other = jobs.mesh.others(leader)
        before = kept(jobs, full)

        disks[full].fill()
        body = request(10)
        with pytest.raises(Refused) as why:
            await jobs.ask(full, "POST", "/api/train", body)
        assert (why.value.status, "body_too_large" in str(why.value)) == (413, True)
        await until(lambda: kept(jobs, full) == before, "nothing is half-kept")
        assert await listed(jobs, other) == known
        assert (await jobs.ask(other, "POST", "/api/train", body))["id"] == body["id"]
        known |= {body["id"]: WAITS}
        await until(lambda: holders(jobs, known, 2), "it is on two disks that have room")
        disks[full].clear()
        assert (await jobs.ask(full, "POST", "/api/train", body))["id"] == body["id"]

        disks[leader].fill()
        body = request(20)
        for node in (other, leader):
            with pytest.raises(Refused) as why:
                await jobs.ask(node, "POST", "/api/train", body)
            kind = "body_too_large" if node == leader else "state_unwritable"
            assert kind in str(why.value)
        waiting = next(job for job, state in known.items() if state == WAITS)
        with pytest.raises(Refused) as why:
            await jobs.ask(other, "POST", f"/api/jobs/{waiting}/cancel", {})
        assert f"n{leader}, which coordinates, writes nothing down just now" in str(why.value)
        disks[leader].clear()
        assert (await jobs.ask(other, "POST", "/api/train", body))["id"] == body["id"]
        known |= {body["id"]: WAITS}
        await jobs.ask(other, "POST", f"/api/jobs/{waiting}/cancel", {})
        known[waiting] = "cancelled"
        await until(lambda: holders(jobs, known, 2), "all is on two disks")
        for node in range(3):
            assert await listed(jobs, node) == known
        assert jobs.mesh.daemons[leader].log_text().count("records of jobs can't be saved") == 1


@pytest.mark.long
async def test_a_disk_that_is_read_only_is_told_and_loses_nothing(
    tmp_path: Path, model: Path, make_disk: Callable[[Path], Disk]
) -> None:
    disks = {node: make_disk(tmp_path / f"n{node}" / "state") for node in range(3)}
    async with job_mesh(tmp_path, model, disks=disks) as jobs:
        known = await ended_and_waiting(jobs, 2)
        leader = jobs.mesh.coordinator()
        spoilt, other = jobs.mesh.others(leader)
        daemon = jobs.mesh.daemons[spoilt]

        disks[spoilt].fail()
        body = request(10)
        with pytest.raises(Refused) as why:
            await jobs.ask(spoilt, "POST", "/api/train", body)
        assert "state_unwritable" in str(why.value)
        assert await listed(jobs, spoilt) == known
        assert (await jobs.ask(other, "POST", "/api/train", body))["id"] == body["id"]
        new = {body["id"]: WAITS}
        await until(lambda: holders(jobs, new, 2, leader, other), "it is on two disks that can be written")
        known |= new

        jobs.pull_plug(leader)
        code = await jobs.mesh.exit_code(spoilt, HEARD_S)
        assert code == 1, "it can't promise anything to the next coordinator"
        assert f"mesh up: the state folder {disks[spoilt].place} can't be written" in daemon.log_text()
        jobs.mesh.start(leader)
        await jobs.mesh.until_agreed(leader, other, within_s=HEARD_S)
        await until_listed(jobs, other, known)

        disks[spoilt].mend()
        daemon.live_on(disks[spoilt])
        disks[spoilt].lock()
        before = len(daemon.log_text())
        jobs.mesh.start(spoilt)
        code = await jobs.mesh.exit_code(spoilt, HEARD_S)
        told = daemon.log_text()[before:]
        assert (code, "Choose another with --state-dir" in told) == (2, True), told
        disks[spoilt].unlock()
        jobs.mesh.start(spoilt)
        await jobs.mesh.until_agreed(within_s=HEARD_S)
        for node in range(3):
            await until_listed(jobs, node, known)


@pytest.mark.long
async def test_a_disk_that_fills_under_a_job_moves_it(
    tmp_path: Path, tried: Path, make_disk: Callable[[Path], Disk]
) -> None:
    disks = {node: make_disk(tmp_path / f"n{node}" / "state") for node in range(3)}
    async with job_mesh(tmp_path, tried, disks=disks) as jobs:
        job, worker = await on_a_follower(jobs)
        others = jobs.mesh.others(worker)
        disks[worker].fill()
        report = await jobs.until_over(job, OVER_S, *others)
        first, *_ = report["attempts"]
        assert (report["state"], len(results(report))) == ("completed", 1), report
        assert "no space is left" in first["reason"]
        resumed = [event["step"] for node in others for event in jobs.events(node, job) if event["event"] == "resumed"]
        assert resumed
        assert min(resumed) >= INTERVAL
        assert [step for step, _ in await jobs.curve(job, *others)] == list(range(1, LONG["max_steps"] + 1))
        disks[worker].clear()
        again = await jobs.submit(worker, LONG | {"max_steps": 2, "target_gpu": f"n{worker}"})
        assert (await jobs.until_over(again, OVER_S))["state"] == "completed"


@pytest.mark.long
async def test_a_copied_checkpoint_that_is_spoilt_is_not_trained_on(tmp_path: Path, tried: Path) -> None:
    async with job_mesh(tmp_path, tried) as jobs:
        job = await jobs.submit(0, LONG)
        victim = await jobs.until_step(job, 2 * INTERVAL + 20)
        heirs = jobs.mesh.others(victim)
        await until(lambda: any(len(copied(jobs, node, job)) == 2 for node in heirs), "two checkpoints are elsewhere")
        holder = next(node for node in heirs if len(copied(jobs, node, job)) == 2)
        jobs.pull_plug(victim)
        (earlier, kept_digests), (newest, digests) = sorted(copied(jobs, holder, job).items())
        for digest in digests - kept_digests:
            flip(jobs.mesh.daemons[holder].state_dir / "data" / digest)
        report = await jobs.until_over(job, OVER_S, *heirs)
        assert (report["state"], len(results(report))) == ("completed", 1), report
        resumed = [event["step"] for node in heirs for event in jobs.events(node, job) if event["event"] == "resumed"]
        print(f"died with {earlier} and {newest} elsewhere, went on from {resumed}")
        assert all(step <= earlier for step in resumed)
        before = jobs.steps(victim, job)
        after = {step: loss for node in heirs for step, loss in jobs.steps(node, job).items()}
        assert after.keys() == set(range(1, LONG["max_steps"] + 1))
        assert all(after[step] == loss for step, loss in before.items())


@pytest.mark.long
@pytest.mark.network
async def test_after_a_minute_in_two_halves_there_is_one_result(
    make_lan: Callable[[int], Lan], tmp_path: Path, tried: Path
) -> None:
    """The coordinator on one side, which orders an attempt of its own, and the worker, which finishes, on the other."""
    lan = make_lan(3)
    async with job_mesh(tmp_path, tried, lan=lan) as jobs:
        leader = jobs.mesh.coordinator()
        job, worker = await on_a_follower(jobs)
        (third,) = jobs.mesh.others(leader, worker)
        lan.partition([leader, third], [worker])
        parted_at = time.monotonic()
        await jobs.until(job, lambda report: len(report["attempts"]) > 1, OVER_S, leader, third)
        await jobs.until(job, lambda report: results(report) != [], OVER_S, worker)
        await until(lambda: time.monotonic() > parted_at + MINUTE_S, "a minute", OVER_S)
        others = await jobs.show(job, leader, third)
        print(f"healed after {time.monotonic() - parted_at:.0f} s; the other half: {others['state']}")
        lan.heal()
        await jobs.mesh.until_agreed(within_s=HEARD_S)
        await jobs.until_over(job, OVER_S, leader, third)
        told = [await jobs.until(job, lambda report: results(report) == [1], OVER_S, node) for node in range(3)]
        assert [report["state"] for report in told] == ["completed"] * 3
        curves = [await jobs.curve(job, node) for node in range(3)]
        assert curves[0] == curves[1] == curves[2]
        assert [step for step, _ in curves[0]] == list(range(1, LONG["max_steps"] + 1))


async def on_a_follower(jobs: JobMesh) -> tuple[str, int]:
    """A job of which there is a checkpoint, and the node that trains it, which is not the coordinator."""
    leader = jobs.mesh.coordinator()
    await jobs.ask(leader, "POST", f"/api/nodes/n{leader}/drain", {})
    job = await jobs.submit(leader, LONG)
    worker = await jobs.until_step(job, INTERVAL + 20)
    assert worker != leader
    await jobs.ask(leader, "POST", f"/api/nodes/n{leader}/resume", {})
    return job, worker


def copied(jobs: JobMesh, node: int, job: str) -> dict[int, set[str]]:
    """Checkpoints of the job that this node keeps for others: digests of their files, by step."""
    pins = (jobs.mesh.daemons[node].state_dir / "data" / ".pins").glob(f"{job}.checkpoint.*")
    return {int(pin.name.split(".")[3]): set(pin.read_text().split()) for pin in pins}


def flip(blob: Path) -> None:
    """One byte in its middle."""
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 0x40
    blob.write_bytes(content)


def request(count: int) -> dict[str, Any]:
    """A job that waits, with data of its own."""
    return {"id": new_id(), "spec": NOBODY, "data": {"name": "others.jsonl", "text": rows(count)}}


async def ended_and_waiting(jobs: JobMesh, replicas: int = 3) -> dict[str, str]:
    """One job that is over and one that waits; their states, which so many nodes have on their disks."""
    over, waiting = await jobs.submit(0, NOBODY, name="over"), await jobs.submit(1, NOBODY, name="waits")
    await jobs.ask(2, "POST", f"/api/jobs/{over}/cancel", {})
    known = {over: "cancelled", waiting: WAITS}
    await until(lambda: holders(jobs, known, replicas), f"{replicas} nodes have the jobs on their disks")
    return known


async def spoilt(jobs: JobMesh, how: dict[int, Callable[[Path], None]], known: dict[str, str]) -> None:
    """These nodes are killed, their stores are spoilt so, and they start again."""
    identities = {node: jobs.mesh.id_of(node) for node in how}
    before = {node: len(jobs.mesh.daemons[node].log_text()) for node in how}
    jobs.pull_plug(*how)
    for node, spoil in how.items():
        spoil(jobs.mesh.daemons[node].state_dir)
    jobs.mesh.start(*how)
    await jobs.mesh.until_agreed(within_s=HEARD_S)
    await until(lambda: holders(jobs, known, 3), "the jobs are on every disk again")
    for node, spoil in how.items():
        assert jobs.mesh.id_of(node) == identities[node]
        told = jobs.mesh.daemons[node].log_text()[before[node] :]
        assert ("is older than" if spoil is log_alone else "is damaged") in told, told
        await until_listed(jobs, node, known)


async def until_listed(jobs: JobMesh, node: int, known: Mapping[str, str]) -> None:
    """A coordinator that has just begun to lead asks the others what they have."""
    async with asyncio.timeout(HEARD_S):
        while await listed(jobs, node) != known:
            await asyncio.sleep(0.1)


async def listed(jobs: JobMesh, node: int) -> dict[str, str]:
    """States of the jobs, as this node tells them."""
    told = (await jobs.ask(node, "GET", "/api/jobs"))["jobs"]
    return {each["id"]: each["state"] if each["state"] in OVER else WAITS for each in told}


def holders(jobs: JobMesh, known: Mapping[str, str], replicas: int, *nodes: int) -> bool:
    """Is each of the jobs, as it is, on so many disks (of these nodes)?"""
    disks = [on_disk(jobs, node) for node in nodes or range(jobs.mesh.size)]
    return all(sum(disk.get(job) == state for disk in disks) >= replicas for job, state in known.items())


def kept(jobs: JobMesh, node: int) -> set[str]:
    """All files of what this node keeps by content."""
    folder = jobs.mesh.daemons[node].state_dir / "data"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


async def put(jobs: JobMesh, node: int, digest: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, str, str]:
    """Upload; status, type of the error and what it says."""
    typed = {"Content-Type": "application/octet-stream", **headers}
    async with (
        jobs.mesh.seats[node].session(TOKEN, HEARD_S) as session,
        session.put(f"/api/data/{digest}", data=body, headers=typed) as response,
    ):
        told = await response.json()
    error = told.get("error", {})
    return response.status, error.get("type", ""), error.get("message", "")


async def break_off(jobs: JobMesh, node: int, digest: str, content: bytes) -> None:
    """A sender that promises all, gives half and is gone."""
    seat = jobs.mesh.seats[node]
    _, writer = await asyncio.open_connection(seat.host, seat.port)
    lines = (
        f"PUT /api/data/{digest} HTTP/1.1",
        f"Host: {seat.host}:{seat.port}",
        f"Authorization: Bearer {TOKEN}",
        "Content-Type: application/octet-stream",
        f"Content-Length: {len(content)}",
    )
    writer.write("\r\n".join((*lines, "", "")).encode() + content[: len(content) // 2])
    await writer.drain()
    await until(lambda: any("coming" in name for name in kept(jobs, node)), "some of it is there")
    writer.close()
    await writer.wait_closed()


def on_disk(jobs: JobMesh, node: int) -> dict[str, str]:
    """States of the jobs that this node has on its own disk."""
    state = jobs.mesh.daemons[node].state_dir
    with tempfile.TemporaryDirectory() as copy:  # SQLite resolves links, also that into another mount namespace
        try:
            for path in state.glob(f"{STORE}*"):
                shutil.copyfile(path, Path(copy) / path.name)
            (Path(copy) / f"{STORE}-shm").unlink(missing_ok=True)
            with closing(sqlite3.connect(Path(copy) / STORE)) as store:
                bodies = [json.loads(body) for (body,) in store.execute("SELECT body FROM record")]
        except (sqlite3.Error, FileNotFoundError):
            return {}
    records = map(job_from_dict, bodies)
    return {job.id: job.course.state if job.is_over else WAITS for job in records}


async def until(condition: Callable[[], bool], what: str, within_s: float = HEARD_S) -> None:
    try:
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not within {within_s} s: {what}") from None
