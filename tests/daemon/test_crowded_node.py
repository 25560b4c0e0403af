"""A node orders no training for which it has not the memory just now: by the job's estimate, with a reserve."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest
from tests.daemon.training_desk import (
    DIGEST,
    DONE,
    JSON,
    LIMIT_S,
    SPEC,
    STREAM,
    TEXT,
    Desk,
    new_id,
    opened,
    play_scripts,
)
from tests.training_fake import starts, write_script

from tiermesh.adapters.passport import Passport
from tiermesh.core.admission import GIB, Machine
from tiermesh.protocol.job_orders import ATTEMPTS_PATH
from tiermesh.types import NodeId, SessionId

pytest.importorskip("torch")

SHORT = "it needs about 1.0 GiB, and 0.9 GiB are free now, besides the reserve"
"""What a trial finds is a GiB."""


def crowd(desk: Desk, free_bytes: int, patch: pytest.MonkeyPatch) -> None:
    """Other programs leave so much."""
    patch.setattr(desk.daemon._training.groundwork, "memory", lambda: Machine(8 * GIB, free_bytes))


@pytest.fixture
def cluster() -> str:
    return f"test-{secrets.token_hex(4)}"


async def test_it_waits_for_the_memory_and_begins_when_it_is_free(
    tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    play_scripts(tmp_path, monkeypatch)
    async with opened(tmp_path, cluster) as desk:
        crowd(desk, GIB, monkeypatch)
        job = await desk.train(DONE)
        async with asyncio.timeout(LIMIT_S):
            while SHORT not in (report := (await desk.ask("GET", f"/api/jobs/{job['id']}"))[1])["reason"]:
                await asyncio.sleep(0.02)
        assert report["state"] == "queued"
        assert report["estimate"]["memory_bytes"] == GIB, "what it takes is known all the same"
        assert starts(desk.run(job["id"])) == []
        crowd(desk, 2 * GIB, monkeypatch)
        assert len((await desk.until(job["id"], "completed"))["attempts"]) == 1


async def test_another_node_that_has_it_is_taken(tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that has the data is asked first, and is crowded by then."""
    for name in "ab":
        (tmp_path / name).mkdir()
        play_scripts(tmp_path / name, monkeypatch)
    async with (
        opened(tmp_path / "a", cluster, name="a") as first,
        opened(tmp_path / "b", cluster, name="b", join=first.url) as second,
    ):
        crowd(first, GIB, monkeypatch)
        job = new_id()
        for attempt in (1, 2):
            write_script(second.run(job, attempt), DONE)
        report = await first.train(DONE, id=job)
        done = await first.until(job, "completed")
        assert done["node"] == "b"
        assert [attempt["node"] for attempt in done["attempts"]] == ["a", "b"], report
        assert SHORT in done["attempts"][1]["why"]


@pytest.mark.parametrize(
    ("needs", "status"), [({}, 200), ({"needs_bytes": GIB // 2}, 200), ({"needs_bytes": GIB}, 409)]
)
async def test_an_order_is_judged_by_what_it_says(
    tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch, needs: dict[str, int], status: int
) -> None:
    """One of an earlier version says nothing."""
    play_scripts(tmp_path, monkeypatch)
    async with opened(tmp_path, cluster) as desk:
        crowd(desk, GIB, monkeypatch)
        await desk.ask("PUT", f"/api/data/{DIGEST}", TEXT.encode(), STREAM)
        job = new_id()
        write_script(desk.run(job), DONE)
        data = {"sha256": DIGEST, "name": "faq.jsonl"}
        order = {"job": job, "spec": SPEC | {"dataset_path": "faq.jsonl"}, "data": data, "attempt": 1}
        ballot = {"term": 1 << 40, "node_id": "b" * 32}
        peer = Passport(cluster, NodeId("b" * 32), SessionId("0000000000001-00000000"))
        got, told = await desk.ask("POST", ATTEMPTS_PATH, order | {"ballot": ballot} | needs, JSON | peer.headers)
        assert got == status, told
        if status != 200:
            assert (told["error"]["type"], told["error"]["message"]) == ("slot_taken", SHORT)
