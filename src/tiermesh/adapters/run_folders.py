"""The folders of this node's runs, as what takes room on its disk. Everything blocks.

    <folder>/<job>/attempt-<n>/   a run (`protocol.run_folder`)
    <folder>/look-*, estimate-*   links to data that is being looked at; nobody's once their daemon is gone
    <folder>/.gone-*              on their way out; what a dead daemon left goes at the next start

What a run needed in order to go on is heavy: its checkpoints, its data. What it came to is not removed with these:
its result, its events and its log, crashes, curves.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tiermesh.protocol import ulid
from tiermesh.protocol.run_folder import RunFolder

WORK = ("look-", "estimate-")
GONE = ".gone-"
HEAVY = ("checkpoints", "input-data", "input-eval_data", "data", ".going-on")
"""Of a run that will not go on."""


class RunFolders:
    """One for a node; its daemon holds the lock of the state folder that this one lies in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> None:
        """Remove what an earlier daemon was at work with."""
        for path in self._there():
            if path.name.startswith((*WORK, GONE)):
                shutil.rmtree(path, ignore_errors=True)

    def jobs(self) -> list[str]:
        """All that have runs here."""
        return [path.name for path in self._there() if re.fullmatch(ulid.PATTERN, path.name) and path.is_dir()]

    def is_heavy(self, job: str) -> bool:
        """Is there anything to `lighten`?"""
        return any(True for _ in self._heavy(job))

    def lighten(self, job: str) -> bool:
        """Remove what its runs needed in order to go on; false, and nothing is removed, while one of them is at work.

        Raises `OSError`.
        """
        with self._still(job) as still:
            if still:
                for path in list(self._heavy(job)):
                    self._remove(path)
            return still

    def remove(self, job: str) -> bool:
        """All of its runs; as `lighten`."""
        with self._still(job) as still:
            if still:
                self._remove(self._folder / job)
            return still

    def free_bytes(self) -> int:
        """On the disk."""
        return shutil.disk_usage(self._folder).free if self._folder.exists() else 1 << 62

    def _there(self) -> list[Path]:
        return list(self._folder.iterdir()) if self._folder.is_dir() else []

    def _heavy(self, job: str) -> Iterator[Path]:
        for run in (self._folder / job).glob("attempt-*"):
            yield from (run / name for name in HEAVY if (run / name).exists())

    @contextmanager
    def _still(self, job: str) -> Iterator[bool]:
        """Is none of them at work? And none begins meanwhile: the locks are held."""
        with ExitStack() as held:
            try:
                for run in (self._folder / job).glob("attempt-*"):
                    if (lock := RunFolder(run).lock).exists():
                        held.callback(os.close, number := os.open(lock, os.O_RDWR))
                        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _remove(self, path: Path) -> None:
        """At once for whoever looks; the disk takes a while."""
        gone = self._folder / f"{GONE}{secrets.token_hex(8)}"
        with suppress(FileNotFoundError):
            path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
