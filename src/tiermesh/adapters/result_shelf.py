"""What training left and this node serves, each in a folder of its own, so that it is served again after a restart.

    <folder>/<name>/result.json     what it is: `ServedResult`; its time of change is when it was used last
    <folder>/<name>/files/          an adapter as peft writes it, or a whole model
    <folder>/.removed               jobs whose results a person has removed here
    <folder>/.coming-*              on its way; what a dead daemon left is removed at the next start

Files may be links to those of the store that they were fetched into: nobody writes them again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from tiermesh.errors import StateUnwritable
from tiermesh.protocol.serving import ServedResult

log = logging.getLogger(__name__)

CAP_BYTES = 32 << 30
"""All results together: thousands of adapters, or some whole models. Those used longest ago make room."""
MAX_RESULTS = 48
"""Each is a model in every status of this node, beside those of its file; and a worker has room for 64 adapters."""
MAX_BARRED = 1000
"""Jobs whose results were removed: other nodes may offer them again for as long as they know of the job."""
BARRED = ".removed"
STAGED = ".coming-"
RECORD, FILES = "result.json", "files"


class ResultShelf:
    """One folder of one node. `open` before all else; `used` gives when each was asked last, by name, Unix time."""

    def __init__(
        self,
        folder: Path,
        *,
        used: Callable[[], Mapping[str, float]],
        cap_bytes: int = CAP_BYTES,
        limit: int = MAX_RESULTS,
    ) -> None:
        self._folder = folder
        self._used = used
        self._cap_bytes = cap_bytes
        self._limit = limit
        self._results: dict[str, ServedResult] = {}
        self._barred: dict[str, None] = {}

    def open(self) -> None:
        """Remove what an earlier daemon did not finish, and read what is there. Blocks."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self._folder.glob(f"{STAGED}*"):
            shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            self._barred = dict.fromkeys((self._folder / BARRED).read_text("utf-8").split())
        for path in self._folder.iterdir():
            if path.name == BARRED:
                continue
            try:
                result = ServedResult.model_validate_json((path / RECORD).read_bytes())
            except (OSError, ValidationError) as error:
                log.warning("what is in %s is not served: %s", path, error)
                continue
            self._results[result.name] = result

    @property
    def results(self) -> Mapping[str, ServedResult]:
        """By name, the longest unused first."""
        return {result.name: result for result in sorted(self._results.values(), key=self._last_use)}

    def files(self, name: str) -> Path:
        """The folder with the adapter or the model."""
        return self._place(name) / FILES

    @asynccontextmanager
    async def coming(self) -> AsyncIterator[Path]:
        """Where to put a folder with files; what is not `put` afterwards goes away. Raises `StateUnwritable`."""
        staged = self._folder / f"{STAGED}{secrets.token_hex(8)}"
        try:
            staged.mkdir()
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        try:
            yield staged / FILES
        finally:
            await asyncio.to_thread(shutil.rmtree, staged, ignore_errors=True)

    async def put(self, result: ServedResult, files: Path) -> None:
        """Keep what came into a `coming` folder; a result of the same name is replaced. Raises `StateUnwritable`."""
        try:
            await asyncio.to_thread(self._put, result, files.parent)
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        self._results[result.name] = result

    async def remove(self, name: str) -> None:
        """Forget it. Its files may be kept elsewhere too."""
        self._results.pop(name, None)
        await asyncio.to_thread(shutil.rmtree, self._place(name), ignore_errors=True)

    def pin(self, name: str, *, pinned: bool) -> ServedResult:
        """Keep it whatever else comes, or no longer so."""
        result = self._results[name] = self._results[name].model_copy(update={"pinned": pinned})
        self._write(result, self._place(name))
        return result

    def bar(self, job: str) -> None:
        """Take nothing of this job any more: a person has removed it. Raises `StateUnwritable`."""
        self._barred[job] = None
        kept = "\n".join([*self._barred][-MAX_BARRED:])
        staged = self._folder / f"{STAGED}{secrets.token_hex(8)}"
        try:
            staged.write_text(kept, "utf-8")
            staged.replace(self._folder / BARRED)
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def is_barred(self, job: str) -> bool:
        """Was it removed here?"""
        return job in self._barred

    def too_many(self, wanted: ServedResult) -> list[str]:
        """Those that must go to make room for one more, the longest unused first; pinned ones never do."""
        others = [result for result in self.results.values() if result.name != wanted.name]
        loose = [result for result in others if not result.pinned]
        total, count = sum(result.size_bytes for result in others) + wanted.size_bytes, len(others) + 1
        gone = []
        while loose and (total > self._cap_bytes or count > self._limit):
            oldest = loose.pop(0)
            gone.append(oldest.name)
            total, count = total - oldest.size_bytes, count - 1
        return gone

    def note_use(self) -> None:
        """Write down when each was used last."""
        for name in self._results:
            if (used := self._used().get(name)) is not None:
                try:
                    os.utime(self._place(name) / RECORD, (used, used))
                except OSError as error:
                    log.debug("when %s was used last is not kept: %s", name, error)

    def _put(self, result: ServedResult, staged: Path) -> None:
        self._write(result, staged)
        for path in (*(staged / FILES).iterdir(), staged / FILES, staged / RECORD, staged):
            _sync(path)
        final = self._place(result.name)
        if final.exists():
            old = self._folder / f"{STAGED}{secrets.token_hex(8)}"
            final.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        staged.rename(final)
        _sync(self._folder)

    def _write(self, result: ServedResult, folder: Path) -> None:
        staged = folder / f".{RECORD}"
        staged.write_text(result.model_dump_json(indent=1) + "\n", "utf-8")
        staged.replace(folder / RECORD)

    def _place(self, name: str) -> Path:
        """Names differ by more than file systems may tell apart (`Cats`, `cats`), or know as devices."""
        return self._folder / f"{name.replace(':', '-')[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    def _last_use(self, result: ServedResult) -> float:
        if (used := self._used().get(result.name)) is not None:
            return used
        try:
            return (self._place(result.name) / RECORD).stat().st_mtime
        except OSError:
            return 0.0


def _unwritable(folder: Path, error: OSError) -> StateUnwritable:
    return StateUnwritable(f"{folder} can't be written: {error.strerror or error}. Free or repair the disk")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
