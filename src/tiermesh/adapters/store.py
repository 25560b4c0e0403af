"""What a node must know after a restart: its promise, the policy, the peers it has met, its jobs. SQLite, one thread.

Each method is one transaction. `synchronous=FULL` makes a returned `save_promise` durable: the election's safety
rests on it.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

from tiermesh.core.jobs import Dataset, Job, JobId
from tiermesh.errors import DuplicateNode, InvalidConfig, StateUnwritable, TiermeshError
from tiermesh.types import NO_BALLOT, Address, Ballot, Contact, NodeId, Policy

T = TypeVar("T")

CONTACT_LIMIT = 1024
"""Peers kept in the address book, the latest met first: ten times the daily case, and a start-up tries them all."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE node (id TEXT NOT NULL);
    CREATE TABLE promise (only INTEGER PRIMARY KEY CHECK (only = 1), term INTEGER NOT NULL, node_id TEXT NOT NULL);
    CREATE TABLE policy (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        term INTEGER NOT NULL, node_id TEXT NOT NULL, version INTEGER NOT NULL, body TEXT NOT NULL
    );
    CREATE TABLE contact (
        met INTEGER PRIMARY KEY AUTOINCREMENT, cluster TEXT NOT NULL, node_id TEXT NOT NULL, addresses TEXT NOT NULL,
        UNIQUE (cluster, node_id)
    );
    """,
    """
    CREATE TABLE job (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE,
        spec TEXT NOT NULL, data TEXT NOT NULL, eval_data TEXT,
        state TEXT NOT NULL, attempt INTEGER NOT NULL,
        submitted_at REAL NOT NULL, started_at REAL, ended_at REAL,
        reason TEXT NOT NULL, failure TEXT, result TEXT NOT NULL
    );
    """,
)
"""Append-only: the number of those already run is the database's `user_version`."""

_JOB_COLUMNS = tuple(field.name for field in fields(Job))
_JOBS = f"SELECT {', '.join(_JOB_COLUMNS)} FROM job ORDER BY id"  # noqa: S608 - our own names
_SAVE_JOB = (
    f"INSERT INTO job ({', '.join(_JOB_COLUMNS)}) VALUES ({', '.join(f':{name}' for name in _JOB_COLUMNS)}) "  # noqa: S608
    f"ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = :{name}' for name in _JOB_COLUMNS)}"
)


@dataclass(frozen=True, slots=True)
class Saved:
    """What was on disk at start."""

    node_id: NodeId
    promised: Ballot
    policy: Policy
    contacts: tuple[Contact, ...]


class Store:
    """The state folder of one node of one cluster. Open it once; `close` it, also after an error."""

    def __init__(self, folder: Path, cluster: str) -> None:
        self._folder = folder
        self._cluster = cluster
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._db: sqlite3.Connection | None = None
        self._lock_fd: int | None = None

    async def open(self) -> Saved:
        """Lock the folder, migrate, read everything. Raises `DuplicateNode` when another daemon holds it."""
        return await self._run(self._open)

    async def save_promise(self, promised: Ballot, policy: Policy) -> None:
        """Durable when it returns. A lower promise than the one on disk is refused by the database itself."""
        await self._run(lambda: self._save_promise(promised, policy))

    async def save_contacts(self, contacts: Iterable[Contact]) -> None:
        """Put these into the address book, each in place of what was kept of the same node; all others stay.

        One without addresses is forgotten, one without a node id is nobody's. `CONTACT_LIMIT` are kept.
        """
        known = tuple(contact for contact in contacts if contact.node_id)
        await self._run(lambda: self._save_contacts(known))

    async def save_job(self, job: Job) -> None:
        """Durable when it returns; in place of what was kept of the same job."""
        await self._run(lambda: self._save_job(job))

    async def jobs(self) -> list[Job]:
        """All of them, in the order of their ids: that of their making."""
        return await self._run(lambda: [_job(row) for row in self._opened().execute(_JOBS)])

    async def close(self) -> None:
        await self._run(self._close)
        self._thread.shutdown()

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except TiermeshError:
            raise
        except (OSError, sqlite3.Error, ValueError, OverflowError) as error:  # the last two: what SQLite can't hold
            raise StateUnwritable(
                f"the state folder {self._folder} can't be written: {error}. Free or repair the disk, then start again"
            ) from error

    def _open(self) -> Saved:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock()
            self._db = db = sqlite3.connect(self._folder / "state.db", isolation_level=None)
            db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;")
            _migrate(db)
        except (OSError, sqlite3.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise InvalidConfig(
                f"can't use the state folder {self._folder}: {reason}. Choose another with --state-dir, or move it "
                "aside to start as a new node",
                param="state_dir",
            ) from error
        return self._read(db)

    def _lock(self) -> None:
        self._lock_fd = fd = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DuplicateNode(
                f"another daemon is running with the state folder {self._folder}. Stop it, or give this one its own "
                "folder with --state-dir"
            ) from None

    def _read(self, db: sqlite3.Connection) -> Saved:
        node = db.execute("SELECT id FROM node").fetchone()
        if node is None:
            node = (secrets.token_hex(16),)
            db.execute("INSERT INTO node VALUES (?)", node)
        promise = db.execute("SELECT term, node_id FROM promise").fetchone()
        policy = db.execute("SELECT term, node_id, version, body FROM policy").fetchone()
        contacts = db.execute("SELECT node_id, addresses FROM contact WHERE cluster = ? ORDER BY met", (self._cluster,))
        return Saved(
            node_id=NodeId(node[0]),
            promised=Ballot(promise[0], NodeId(promise[1])) if promise else NO_BALLOT,
            policy=_policy(policy) if policy else Policy(),
            contacts=tuple(Contact(tuple(map(Address, json.loads(a))), NodeId(n)) for n, a in contacts),
        )

    def _save_promise(self, promised: Ballot, policy: Policy) -> None:
        db = self._opened()
        with _transaction(db):
            db.execute(
                "INSERT INTO promise VALUES (1, :term, :node) ON CONFLICT (only) DO UPDATE SET term = :term, "
                "node_id = :node WHERE (:term, :node) > (term, node_id)",
                {"term": promised.term, "node": promised.node_id},
            )
            db.execute(
                "INSERT OR REPLACE INTO policy VALUES (1, ?, ?, ?, ?)",
                (policy.ballot.term, policy.ballot.node_id, policy.version, json.dumps(dict(policy.body))),
            )

    def _save_contacts(self, contacts: tuple[Contact, ...]) -> None:
        db = self._opened()
        kept = [(self._cluster, c.node_id, json.dumps(c.addresses)) for c in contacts if c.addresses]
        forgotten = [(self._cluster, c.node_id) for c in contacts if not c.addresses]
        with _transaction(db):
            db.executemany("INSERT OR REPLACE INTO contact (cluster, node_id, addresses) VALUES (?, ?, ?)", kept)
            db.executemany("DELETE FROM contact WHERE cluster = ? AND node_id = ?", forgotten)
            db.execute(
                "DELETE FROM contact WHERE cluster = :cluster AND met NOT IN "
                "(SELECT met FROM contact WHERE cluster = :cluster ORDER BY met DESC LIMIT :limit)",
                {"cluster": self._cluster, "limit": CONTACT_LIMIT},
            )

    def _save_job(self, job: Job) -> None:
        row = asdict(job) | {
            "spec": json.dumps(job.spec),
            "data": json.dumps(asdict(job.data)),
            "eval_data": json.dumps(asdict(job.eval_data)) if job.eval_data else None,
            "result": json.dumps(job.result),
        }
        db = self._opened()
        with _transaction(db):
            db.execute(_SAVE_JOB, row)

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _opened(self) -> sqlite3.Connection:
        assert self._db is not None, "the store is used before open() or after close()"
        return self._db


class _transaction:  # noqa: N801 - reads as a statement
    """BEGIN IMMEDIATE .. COMMIT, or ROLLBACK when the block raises."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


def _migrate(db: sqlite3.Connection) -> None:
    (done,) = db.execute("PRAGMA user_version").fetchone()
    if done > len(MIGRATIONS):
        raise sqlite3.DatabaseError(
            f"it was written by a newer version (schema {done}, this one knows {len(MIGRATIONS)})"
        )
    for number, script in enumerate(MIGRATIONS[done:], start=done + 1):
        db.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")


def _policy(row: tuple[int, str, int, str]) -> Policy:
    return Policy(ballot=Ballot(row[0], NodeId(row[1])), version=row[2], body=json.loads(row[3]))


def _job(row: tuple[object, ...]) -> Job:
    facts = dict(zip(_JOB_COLUMNS, row, strict=True))
    plain = {name: json.loads(str(facts[name])) for name in ("spec", "data", "result")}
    held_out = json.loads(str(facts["eval_data"])) if facts["eval_data"] else None
    return Job(
        **facts
        | plain
        | {"id": JobId(str(facts["id"])), "data": Dataset(**plain["data"])}
        | {"eval_data": Dataset(**held_out) if held_out else None}  # type: ignore[arg-type]
    )
