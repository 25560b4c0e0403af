"""The folder of token caches: what is in it is whole, or not there.

    <key>/             a finished corpus and its plans
    staging/<key>/     one in the making; only whoever holds the lock may touch it
    locks/<key>        held with flock(2), so that a dead builder holds nothing
    digests/<key>      of files that were read before, with size and time, so that they need not be read again

A builder that is killed leaves a staging folder, which the next one of the same key removes. Two builders of one key:
the second waits, and finds the work done.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FACTS = "facts.json"
"""Written last: a folder with it is finished."""
MAX_BYTES = 20_000_000_000
"""Of all corpora together; tokens of 10 thousand million words. The longest unused go first."""
KEPT_S = 24 * 3600.0
"""A corpus that was used within a day stays, whatever it takes: a run may have it open, or go on with it."""
STAMP_AGE_NS = 2_000_000_000
"""A file changed this shortly before it was hashed may change again without another time in its folder."""


@contextmanager
def locked(store: Path, key: str) -> Iterator[None]:
    """Wait for and hold the right to build what has this key."""
    folder = store / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / key, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def staged(final: Path, store: Path) -> Iterator[Path]:
    """An empty folder that becomes `final`, durably, when the block ends well. Hold the lock of its key."""
    staging = store / "staging" / final.name
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        for path in (*staging.iterdir(), staging):
            _sync(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            shutil.rmtree(final)
        staging.rename(final)
        _sync(final.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


Stamp = list[int]
"""What changes when a file's content does, nearly always: size, time, and which file it is."""


def stamp_of(path: Path) -> Stamp:
    """Of a file as it is now."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev]


def file_digest(path: Path, store: Path) -> tuple[str, Stamp]:
    """SHA-256 of a file's content, and the stamp that it then had; of one that is as it was, without reading it."""
    kept = store / "digests" / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    stamp = stamp_of(path)
    try:
        found = json.loads(kept.read_text("utf-8"))
        if found["stamp"] == stamp:
            return str(found["sha256"]), stamp
    except (OSError, ValueError, KeyError, TypeError):
        pass
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if path.stat().st_mtime_ns < time.time_ns() - STAMP_AGE_NS:
        write_json(kept, {"stamp": stamp, "sha256": digest})
    return digest, stamp


def write_json(path: Path, data: object) -> None:
    """Replace a file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_text(json.dumps(data), "utf-8")
    staging.replace(path)


def used(folder: Path) -> None:
    """Note that a corpus was used now."""
    with suppress(OSError):
        os.utime(folder / FACTS)


def prune(store: Path, now: float, *, max_bytes: int = MAX_BYTES) -> list[Path]:
    """Remove the longest unused corpora until the others fit; gives what was removed. `now` is Unix time."""
    ages = sorted((facts.stat().st_mtime, facts.parent) for facts in store.glob(f"*/{FACTS}"))
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for _, folder in ages}
    removed = []
    for last_used, folder in ages:
        if sum(sizes.values()) <= max_bytes or last_used > now - KEPT_S:
            break
        (folder / FACTS).unlink(missing_ok=True)  # From here on it is no finished corpus.
        shutil.rmtree(folder, ignore_errors=True)
        del sizes[folder]
        removed.append(folder)
    return removed


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
