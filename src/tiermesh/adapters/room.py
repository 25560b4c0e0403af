"""The room that a folder of files takes: no more than a cap, and some of the disk is left free.

What has not been used for longest makes room for what comes, but for what is needed. The disk is walked and given back
in threads, what goes is chosen on the loop: whoever needs a file from now on comes before that or after it, and never
between. So a file goes in two steps: renamed out of sight at once, and removed when there is time for it, since a
large one takes the disk a while.

    <folder>/.gone/*   on their way out; what a dead daemon left goes at the next start
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple, ParamSpec, TypeVar

from tiermesh.errors import BodyTooLarge

P = ParamSpec("P")
T = TypeVar("T")

FREE_RESERVE_BYTES = 1 << 30
"""Left free on the disk, for checkpoints and for everybody else."""
GONE = ".gone"


class Found(NamedTuple):
    """A file as it was when the disk was walked."""

    name: str
    size_bytes: int
    used_at: int
    """Time of its last use, in ns."""
    is_only_here: bool
    """Or has it links elsewhere, so that nothing is won when this one goes?"""


class Room:
    """Of one folder; files whose names begin with a dot never make room. `open` before all else.

    Everything on one loop, but for `open`, `empty` and `touch`, which block. `is_needed` is asked by a file's name;
    `on_gone` hears the names of those that made room.
    """

    def __init__(
        self, folder: Path, cap_bytes: int, *, is_needed: Callable[[str], bool], on_gone: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._cap_bytes = cap_bytes
        self._is_needed = is_needed
        self._on_gone = on_gone
        self._at_most_bytes = cap_bytes
        """No more than this is here. Looked up when it might matter: a folder of thousands of files takes its time."""
        self._grown_bytes = 0
        """All that ever came."""
        self._turn = asyncio.Lock()
        """One walk at a time: the second would count what the first one removes."""
        self._moving = threading.Lock()
        """A file is used, or it goes. Held for a system call or two."""

    def open(self) -> None:
        """Remove what was on its way out."""
        (self._folder / GONE).mkdir(parents=True, exist_ok=True, mode=0o700)
        self.empty()

    def grew(self, size_bytes: int) -> None:
        """So much more is here."""
        self._at_most_bytes += size_bytes
        self._grown_bytes += size_bytes

    def check(self, size_bytes: int) -> None:
        """May a file that is being written become so large? Raises `BodyTooLarge`."""
        if size_bytes > self._cap_bytes:
            raise BodyTooLarge(f"the data is larger than the {self._cap_bytes:,} bytes that this node keeps")
        if self._free_bytes() < 0:
            raise BodyTooLarge(f"this node's disk is full: {FREE_RESERVE_BYTES:,} bytes must stay free")

    async def make(self, wanted_bytes: int) -> None:
        """For so much, by forgetting the oldest that nobody needs. Raises `BodyTooLarge`, and nothing is forgotten."""
        if wanted_bytes > self._cap_bytes:
            raise BodyTooLarge(f"{wanted_bytes:,} bytes are more than the {self._cap_bytes:,} that this node keeps")
        if self._is_there(wanted_bytes):
            return
        async with self._turn:
            if self._is_there(wanted_bytes):
                return
            before = self._grown_bytes
            there = await in_thread(self.walk)
            self._at_most_bytes = sum(found.size_bytes for found in there) + self._grown_bytes - before
            if self._forget(wanted_bytes, there):
                await in_thread(self.empty)

    def walk(self) -> list[Found]:
        """Files, finished or not, the longest unused first; threads publish and remove some at any time. Blocks."""
        files = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    stat = entry.stat(follow_symlinks=False)
                    if S_ISREG(stat.st_mode):
                        files.append(Found(entry.name, stat.st_size, stat.st_mtime_ns, stat.st_nlink == 1))
        return sorted(files, key=lambda found: found.used_at)

    def touch(self, path: Path) -> bool:
        """It is used now; false when it is not there. Blocks."""
        with self._moving:
            try:
                os.utime(path)
            except FileNotFoundError:
                return False
        return True

    def discard(self, path: Path) -> None:
        """Out of sight, if it is there; the disk has its room again after `empty`. Raises `OSError`."""
        with suppress(FileNotFoundError):
            path.rename(self._folder / GONE / secrets.token_hex(8))

    def empty(self) -> None:
        """Remove all that is out of sight. Blocks."""
        for path in (self._folder / GONE).iterdir():
            with suppress(OSError):  # another thread was quicker; or the disk won't, and the next one tries again
                path.unlink()

    def empty_soon(self) -> None:
        """As `empty`, in a thread that nobody waits for."""
        asyncio.get_running_loop().run_in_executor(None, self._emptied)

    def _emptied(self) -> None:
        with suppress(OSError):
            self.empty()

    def _is_there(self, wanted_bytes: int) -> bool:
        fits = self._at_most_bytes + wanted_bytes <= self._cap_bytes
        return fits and (not wanted_bytes or wanted_bytes <= self._free_bytes())

    def _forget(self, wanted_bytes: int, there: list[Found]) -> bool:
        """Has anything gone?"""
        loose = [found for found in there if not (found.name.startswith(".") or self._is_needed(found.name))]
        over = self._at_most_bytes + wanted_bytes - self._cap_bytes
        short = wanted_bytes - self._free_bytes() if wanted_bytes else 0
        if wanted_bytes and over > sum(found.size_bytes for found in loose):
            kept = f"this node keeps {self._cap_bytes:,}, and jobs need what is there"
            raise BodyTooLarge(f"{wanted_bytes:,} bytes don't fit: {kept}")
        if short > (freed := sum(found.size_bytes for found in loose if found.is_only_here)):
            room = max(0, wanted_bytes - short + freed)
            told = f"{room:,} to spare besides the {FREE_RESERVE_BYTES:,} that stay free"
            raise BodyTooLarge(f"{wanted_bytes:,} bytes don't fit on this node's disk, which has {told}")
        gone = False
        for found in loose:
            if over <= 0 and short <= 0:
                break
            if self._gone_unless_used(found):
                gone = True
                self._on_gone(found.name)
                self._at_most_bytes -= found.size_bytes
                over -= found.size_bytes
                short -= found.size_bytes if found.is_only_here else 0
        return gone

    def _gone_unless_used(self, found: Found) -> bool:
        """What was used since the walk stays."""
        path = self._folder / found.name
        with self._moving:
            try:
                if path.stat().st_mtime_ns != found.used_at:
                    return False
            except FileNotFoundError:
                return True
            self.discard(path)
        return True

    def _free_bytes(self) -> int:
        """On the disk, besides what must stay free."""
        return shutil.disk_usage(self._folder).free - FREE_RESERVE_BYTES


async def in_thread(work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Who is cancelled leaves when it is done, so that no file is written behind anybody's back."""
    done = asyncio.ensure_future(asyncio.to_thread(work, *args, **named))
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.gather(done, return_exceptions=True)
        raise
