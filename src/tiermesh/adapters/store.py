"""What a node must know after a restart: its promise, the policy, the peers it has met, records of jobs, its own
attempts at them. SQLite, one thread.

Each method is one transaction. `synchronous=FULL` makes a returned `save_promise` durable: the election's safety
rests on it. A file that the disk has spoilt is set aside and a new one begun: other nodes have the records, and who
this node is and what it has promised is in `node.json` besides.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import logging
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tiermesh.adapters.identity import FILE_NAME as IDENTITY_FILE
from tiermesh.adapters.identity import Identity, read_identity, write_identity
from tiermesh.adapters.old_jobs import old_jobs
from tiermesh.core.jobs import Job, job_from_dict, job_to_dict
from tiermesh.errors import DuplicateNode, InvalidConfig, StateUnwritable, TiermeshError
from tiermesh.types import NO_BALLOT, Address, Ballot, Contact, NodeId, Policy

T = TypeVar("T")

log = logging.getLogger(__name__)

FILE_NAME = "state.db"
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
    """
    CREATE TABLE record (id TEXT PRIMARY KEY, body TEXT NOT NULL);
    CREATE TABLE attempt (job TEXT NOT NULL, number INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (job, number));
    """,
)
"""Append-only: the number of those already run is the database's `user_version`."""


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
        self._identity: Identity | None = None
        self._is_told = False
        """Was it said already that what was kept is lost?"""

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

    async def save_records(self, jobs: Iterable[Job]) -> None:
        """Durable, all of them, when it returns; each in place of what was kept of the same job."""
        rows = [(job.id, _written(job)) for job in jobs]
        await self._run(lambda: self._save_records(rows))

    async def records(self) -> list[Job]:
        """All of them, in the order of their ids: that of their making. One that can't be read stays where it is."""
        return await self._run(self._records)

    async def save_attempt(self, job: str, number: int, body: Mapping[str, Any]) -> None:
        """What this node last knew of its own attempt, as plain JSON. Durable when it returns."""
        await self._run(lambda: self._save_attempt((job, number, json.dumps(body, separators=(",", ":")))))

    async def forget_attempt(self, job: str, number: int) -> None:
        """Somebody else keeps it from now on."""
        await self._run(
            lambda: self._opened().execute("DELETE FROM attempt WHERE job = ? AND number = ?", (job, number))
        )

    async def attempts(self) -> list[dict[str, Any]]:
        """Those that were saved and not forgotten."""
        rows = "SELECT body FROM attempt ORDER BY job, number"
        return await self._run(lambda: [json.loads(body) for (body,) in self._opened().execute(rows)])

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
                f"the state folder {self._folder} can't be written: {error}. Free or repair the disk"
            ) from error

    def _open(self) -> Saved:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock()
            try:
                self._db = db = self._connected()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError | _Newer):
                    raise
                self._set_aside(error)
                self._db = db = self._connected()
        except (OSError, sqlite3.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise InvalidConfig(
                f"can't use the state folder {self._folder}: {reason}. Choose another with --state-dir, or move it "
                "aside to start as a new node",
                param="state_dir",
            ) from error
        return self._read(db)

    def _connected(self) -> sqlite3.Connection:
        """Whole, and of this version's shape. Raises `sqlite3.DatabaseError` for what is spoilt."""
        db = sqlite3.connect(self._folder / FILE_NAME, isolation_level=None)
        try:
            db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;")
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            _migrate(db)
        except BaseException:
            db.close()
            raise
        return db

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        """Spoilt, it is kept for whoever wants to look at it, and never read again."""
        taken = (self._folder / f"{FILE_NAME}.corrupt-{number}" for number in itertools.count(1))
        aside = next(path for path in taken if not path.exists())
        for end in ("-wal", "-shm", ""):  # the file itself last: without it the others are nobody's
            with suppress(FileNotFoundError):
                (self._folder / f"{FILE_NAME}{end}").rename(f"{aside}{end}")
        self._is_told = True
        log.critical(
            "%s is damaged (%s): set aside as %s. Records of jobs come again from other nodes; what only this node "
            "knew is gone, the address book too",
            self._folder / FILE_NAME,
            error,
            aside.name,
        )

    def _tell_lost(self) -> None:
        """What is in `node.json` was in the database first. A write-ahead log that is gone or spoilt takes what it had
        along without a word, and what is left is whole."""
        if self._is_told:
            return
        log.critical(
            "%s is older than %s: what was written there last is gone. Records of jobs come again from other nodes",
            self._folder / FILE_NAME,
            IDENTITY_FILE,
        )

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
        promise = db.execute("SELECT term, node_id FROM promise").fetchone()
        kept = read_identity(self._folder)
        me = NodeId(node[0]) if node else kept.node_id if kept else NodeId(secrets.token_hex(16))
        promised = Ballot(promise[0], NodeId(promise[1])) if promise else NO_BALLOT
        if kept is not None and kept.node_id == me and kept.promised > promised:
            promised = kept.promised
            self._tell_lost()
            db.execute("INSERT OR REPLACE INTO promise VALUES (1, ?, ?)", (promised.term, promised.node_id))
        if node is None:
            db.execute("INSERT INTO node VALUES (?)", (me,))
        self._identify(Identity(me, promised))
        _take_over(db, me)
        policy = db.execute("SELECT term, node_id, version, body FROM policy").fetchone()
        contacts = db.execute("SELECT node_id, addresses FROM contact WHERE cluster = ? ORDER BY met", (self._cluster,))
        return Saved(
            node_id=me,
            promised=promised,
            policy=_policy(policy) if policy else Policy(),
            contacts=tuple(Contact(tuple(map(Address, json.loads(a))), NodeId(n)) for n, a in contacts),
        )

    def _identify(self, identity: Identity) -> None:
        if identity != self._identity:
            write_identity(self._folder, identity)
            self._identity = identity

    def _save_promise(self, promised: Ballot, policy: Policy) -> None:
        db = self._opened()
        assert self._identity is not None, "read when it was opened"
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
        if promised > self._identity.promised:
            self._identify(replace(self._identity, promised=promised))

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

    def _save_records(self, rows: Sequence[tuple[str, str]]) -> None:
        db = self._opened()
        with _transaction(db):
            db.executemany("INSERT OR REPLACE INTO record VALUES (?, ?)", rows)

    def _records(self) -> list[Job]:
        found = []
        for key, body in self._opened().execute("SELECT id, body FROM record ORDER BY id"):
            try:
                found.append(job_from_dict(json.loads(body)))
            except ValueError as error:
                log.error("the record of job %s can't be read: %s", key, error)
        return found

    def _save_attempt(self, row: tuple[str, int, str]) -> None:
        with _transaction(db := self._opened()):
            db.execute("INSERT OR REPLACE INTO attempt VALUES (?, ?, ?)", row)

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


class _Newer(sqlite3.DatabaseError):
    """Nothing is wrong with it but this program."""


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
        raise _Newer(f"it was written by a newer version (schema {done}, this one knows {len(MIGRATIONS)})")
    for number, script in enumerate(MIGRATIONS[done:], start=done + 1):
        db.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")


def _take_over(db: sqlite3.Connection, me: NodeId) -> None:
    """Jobs of a version that kept them for this node alone become records."""
    rows = [(job.id, _written(job)) for job in old_jobs(db, me)]
    with _transaction(db):
        db.executemany("INSERT OR IGNORE INTO record VALUES (?, ?)", rows)
        db.execute("DELETE FROM job")


def _written(job: Job) -> str:
    return json.dumps(job_to_dict(job), separators=(",", ":"))


def _policy(row: tuple[int, str, int, str]) -> Policy:
    return Policy(ballot=Ballot(row[0], NodeId(row[1])), version=row[2], body=json.loads(row[3]))
