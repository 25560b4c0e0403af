"""What a node must not forget: promise, policy, address book, its own id."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tiermesh.adapters.store import CONTACT_LIMIT, MIGRATIONS, Saved, Store
from tiermesh.core.attempts import Attempt, Checkpoint, Told
from tiermesh.core.jobs import Asked, Dataset, Job, JobId
from tiermesh.errors import DuplicateNode, InvalidConfig, StateUnwritable
from tiermesh.types import NO_BALLOT, Address, Ballot, Contact, NodeId, Policy

A, B = NodeId("a" * 32), NodeId("b" * 32)


@asynccontextmanager
async def opened(folder: Path, cluster: str = "home") -> AsyncIterator[tuple[Store, Saved]]:
    store = Store(folder, cluster)
    try:
        yield store, await store.open()
    finally:
        await store.close()


async def test_a_new_folder_is_a_new_node(tmp_path: Path) -> None:
    async with opened(tmp_path / "deep" / "state") as (_, saved):
        assert len(saved.node_id) == 32
        assert (saved.promised, saved.policy, saved.contacts) == (NO_BALLOT, Policy(), ())


async def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    policy = Policy(Ballot(3, A), 2, {"routing": {"aliases": {"gpt-4o": "smollm2:135m"}}})
    contacts = (Contact((Address("10.0.0.1:8000"), Address("[fd00::1]:8000")), A), Contact((Address("10.0.0.2:1"),), B))
    async with opened(tmp_path) as (store, first):
        await store.save_promise(Ballot(7, B), policy)
        await store.save_contacts((*contacts, Contact((Address("stranger:1"),))))
    async with opened(tmp_path) as (_, again):
        assert again == Saved(first.node_id, Ballot(7, B), policy, contacts)


async def test_a_promise_never_falls(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, _):
        await store.save_promise(Ballot(7, A), Policy())
        await store.save_promise(Ballot(6, B), Policy())
        await store.save_promise(Ballot(7, NodeId("9" * 32)), Policy())
    async with opened(tmp_path) as (_, saved):
        assert saved.promised == Ballot(7, A)


async def test_the_address_book_is_of_one_cluster_and_bounded(tmp_path: Path) -> None:
    many = [Contact((Address(f"h{i}:1"),), NodeId(f"{i:032x}")) for i in range(CONTACT_LIMIT + 5)]
    async with opened(tmp_path, "home") as (store, _):
        await store.save_contacts(many)
    async with opened(tmp_path, "work") as (store, saved):
        assert saved.contacts == ()
        await store.save_contacts(many[:1])
    async with opened(tmp_path, "home") as (_, saved):
        assert saved.contacts == tuple(many[-CONTACT_LIMIT:])


async def test_news_of_one_peer_leave_the_others_in_the_address_book(tmp_path: Path) -> None:
    before, moved = Contact((Address("10.0.0.1:8000"),), A), Contact((Address("10.0.0.7:8000"),), A)
    other = Contact((Address("10.0.0.2:8000"),), B)
    async with opened(tmp_path) as (store, _):
        await store.save_contacts((before,))
        await store.save_contacts((other,))
        await store.save_contacts((moved,))
    async with opened(tmp_path) as (store, saved):
        assert saved.contacts == (other, moved)
        await store.save_contacts((Contact((), B),))
    async with opened(tmp_path) as (_, saved):
        assert saved.contacts == (moved,), "one without addresses was forgotten"


async def test_two_daemons_do_not_share_a_folder(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(DuplicateNode, match="--state-dir"):
            async with opened(tmp_path):
                pass
    async with opened(tmp_path):
        """The lock went with the first."""


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: newer(folder / "state.db"), "newer version"),
        (lambda folder: (folder / "state.db").mkdir(), "unable to open"),
    ],
)
async def test_a_folder_that_can_not_be_used_says_so(
    tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    spoil(tmp_path)
    with pytest.raises(InvalidConfig, match=words) as caught:
        async with opened(tmp_path):
            pass
    assert str(tmp_path) in str(caught.value)
    assert "--state-dir" in str(caught.value)


def newer(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()


async def test_a_write_that_fails_is_typed(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, _):
        other = sqlite3.connect(tmp_path / "state.db")
        other.executescript("DROP TABLE promise")
        other.close()
        with pytest.raises(StateUnwritable, match="promise"):
            await store.save_promise(Ballot(1, A), Policy())


async def test_what_no_database_can_hold_is_typed_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, _):
        with pytest.raises(StateUnwritable, match="surrogates"):
            await store.save_promise(Ballot(1, NodeId("\ud800")), Policy())
        with pytest.raises(StateUnwritable, match="too large"):
            await store.save_promise(Ballot(2**64, A), Policy())


def test_a_saved_promise_survives_sigkill(tmp_path: Path) -> None:
    """What `save_promise` returned from is there after the process was killed at once."""
    script = (
        "import asyncio, os, sys, pathlib\n"
        "from tiermesh.adapters.store import Store\n"
        "from tiermesh.types import Ballot, NodeId, Policy\n"
        "async def main():\n"
        "    store = Store(pathlib.Path(sys.argv[1]), 'home')\n"
        "    await store.open()\n"
        "    for term in range(1, 6):\n"
        "        await store.save_promise(Ballot(term, NodeId('a')), Policy())\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=os.environ, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL

    async def read() -> Ballot:
        async with opened(tmp_path) as (_, saved):
            return saved.promised

    assert asyncio.run(read()) == Ballot(5, NodeId("a"))


def record(key: str, **fields: object) -> Job:
    asked = Asked(
        name="faq",
        spec={"seed": 7, "lora": {"r": 4}},
        data=Dataset("a" * 64, "faq.jsonl", 9),
        eval_data=Dataset("b" * 64, "held.csv"),
        submitted_at=1.5,
    )
    return replace(Job(id=JobId(key), asked=asked), **fields)  # type: ignore[arg-type]


async def test_records_come_back_as_they_were_saved_last(tmp_path: Path) -> None:
    job, other = record("01ARZ3NDEKTSV4RRFFQ69G5FAV"), record("01ARZ3NDEKTSV4RRFFQ69G5FAA")
    told = Told(seq=3, state="stopped", step=7, checkpoint=Checkpoint(7, "c" * 64, (A, B)))
    attempt = Attempt(number=1, ballot=Ballot(3, A), node=B, spec=job.spec, ordered_at=2.0, told=told)
    later = job.after("admit", Ballot(3, A), 3.0).with_attempt(attempt)
    async with opened(tmp_path) as (store, _):
        await store.save_records([job, other])
        await store.save_records([later])
    async with opened(tmp_path) as (store, _):
        assert await store.records() == [other, later]


async def test_own_attempts_are_kept_until_they_are_forgotten(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, _):
        for number in (1, 2):
            await store.save_attempt("J", number, {"told": {"seq": number}})
        await store.save_attempt("J", 2, {"told": {"seq": 9}})
        await store.forget_attempt("J", 1)
    async with opened(tmp_path) as (store, _):
        assert await store.attempts() == [{"told": {"seq": 9}}]


@pytest.mark.parametrize("version", [1, 2])
async def test_a_folder_of_an_earlier_version_gets_its_jobs(tmp_path: Path, version: int) -> None:
    db = sqlite3.connect(tmp_path / "state.db")
    db.executescript(f"{'; '.join(MIGRATIONS[:version])}; PRAGMA user_version = {version};")
    db.close()
    async with opened(tmp_path) as (store, _):
        assert await store.records() == []


async def test_jobs_that_an_earlier_version_kept_are_taken_over(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "state.db")
    db.executescript(f"{'; '.join(MIGRATIONS[:2])}; PRAGMA user_version = 2;")
    db.execute("INSERT INTO node VALUES (?)", (A,))
    row = "INSERT INTO job VALUES (?, ?, '{}', ?, NULL, ?, 1, 1.0, ?, ?, ?, NULL, ?)"
    data = f'{{"sha256": "{"a" * 64}", "name": "faq.jsonl"}}'
    db.execute(row, ("1", "queued", data, "queued", None, None, "", "{}"))
    db.execute(row, ("2", "running", data, "running", 2.0, None, "", "{}"))
    db.execute(row, ("3", "done", data, "completed", 2.0, 3.0, "done after 9 steps", '{"step": 9}'))
    db.commit()
    db.close()
    for _ in range(2):
        async with opened(tmp_path) as (store, _saved):
            queued, running, done = await store.records()
    assert [(job.name, job.state) for job in (queued, running, done)] == [
        ("queued", "queued"),
        ("running", "running"),
        ("done", "completed"),
    ]
    assert (queued.attempts, queued.data.name, queued.holders) == ((), "faq.jsonl", (A,))
    assert running.current is not None
    assert (running.current.node, running.current.told and running.current.told.state) == (A, "stopped")
    assert done.result is not None
    assert done.result.told is not None
    assert (done.result.told.result, done.ended_at) == ({"step": 9}, 3.0)


async def test_a_spoilt_file_is_set_aside_and_the_node_is_who_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as (store, first):
        await store.save_promise(Ballot(7, B), Policy())
        await store.save_records([record(f"{number:026d}") for number in range(200)])
    for number in (1, 2):
        content = bytearray((tmp_path / "state.db").read_bytes())
        content[4096 : len(content) : 512] = b"\xff" * len(content[4096 : len(content) : 512])
        (tmp_path / "state.db").write_bytes(content)
        async with opened(tmp_path) as (store, again):
            assert (again.node_id, again.promised) == (first.node_id, Ballot(7, B))
            assert await store.records() == []
            await store.save_records([record(f"{number:026d}") for number in range(200)])
        assert (tmp_path / f"state.db.corrupt-{number}").exists()
        assert f"set aside as state.db.corrupt-{number}" in caplog.text
    assert "older" not in caplog.text


async def test_a_write_ahead_log_that_is_lost_is_noticed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(tmp_path) as (store, first):
        await store.save_promise(Ballot(6, B), Policy())
    other = sqlite3.connect(tmp_path / "state.db")  # what closes last folds the log into the file
    async with opened(tmp_path) as (store, _):
        await store.save_promise(Ballot(7, B), Policy())
        await store.save_records([record("1")])
        before = (tmp_path / "state.db").read_bytes()
    other.close()
    (tmp_path / "state.db").write_bytes(before)
    for _ in range(2):
        async with opened(tmp_path) as (store, again):
            assert (again.node_id, again.promised) == (first.node_id, Ballot(7, B))
            assert await store.records() == []
    assert caplog.text.count("state.db is older than node.json") == 1


async def test_a_record_that_can_not_be_read_stays_where_it_is(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, _):
        await store.save_records([record("1"), record("2")])
        other = sqlite3.connect(tmp_path / "state.db")
        other.execute("UPDATE record SET body = '{}' WHERE id = '1'")
        other.commit()
        assert [job.id for job in await store.records()] == ["2"]
        assert other.execute("SELECT count(*) FROM record").fetchone() == (2,)
        other.close()
