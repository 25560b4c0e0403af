"""A disk that can be full, read-only and mended: a file system that only the processes of one test see.

It is ext4 in a file, mounted in a mount namespace which a process of ours holds open; when that ends, also because
this one was killed, nothing is left of it. What is started with `prefix` sees the disk; this process looks in through
`seen`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

SIZE_BYTES = 4 << 30
"""A hole in a file, of which next to nothing is written. A node leaves a gigabyte free for others."""
BALLAST = "ballast"
EXIT_S = 20.0
_TOOLS = ("unshare", "nsenter", "mkfs.ext4", "e2fsck")
_HOLD = 'mount -o loop,errors=remount-ro "$0" "$1" && echo held && exec cat'
"""`cat` ends when this process does: nobody else has the other end of its pipe."""
_BLOCK_BYTES = 4096


def obstacle() -> str | None:
    """Why there can be no such disk here, for a skipped test; None: there can."""
    if sys.platform != "linux":
        return "mount namespaces exist on Linux only"
    if os.geteuid() != 0:
        return "mounting a disk needs root"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"mounting a disk needs {', '.join(missing)} (apt-get install util-linux e2fsprogs)"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with Disk(Path(folder) / "probe") as disk:
                return None if disk.device else "this machine's disks have no names"
        except (RuntimeError, OSError) as error:
            return f"this machine mounts no disks: {error}"


class Disk:
    """At `place`, an empty folder. Use as a context manager; whoever uses the disk has ended before."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._image = place.with_name(f"{place.name}.img")
        self._holder: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.place.mkdir(parents=True, exist_ok=True)
        with self._image.open("wb") as image:
            image.truncate(SIZE_BYTES)
        _run("mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard", str(self._image))
        self._hold()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._let_go()
        self._image.unlink(missing_ok=True)

    @property
    def prefix(self) -> list[str]:
        """Before a command that is to see the disk at its place."""
        return ["nsenter", f"--mount=/proc/{self._pid}/ns/mnt", "--"]

    @property
    def device(self) -> str:
        """As the kernel calls it."""
        mounts = Path(f"/proc/{self._pid}/mountinfo").read_text().splitlines()
        return next(Path(line.split()[-2]).name for line in mounts if line.split()[4] == str(self.place))

    def seen(self, path: Path) -> Path:
        """A path on the disk, for this process."""
        return Path(f"/proc/{self._pid}/root") / path.relative_to("/")

    def fill(self) -> None:
        """Nothing more fits."""
        root = self.seen(self.place)
        piece = shutil.disk_usage(root).free
        with (root / BALLAST).open("ab") as ballast:
            while piece >= _BLOCK_BYTES:
                try:
                    os.posix_fallocate(ballast.fileno(), os.fstat(ballast.fileno()).st_size, piece)
                except OSError:
                    piece //= 2

    def clear(self) -> None:
        """As before `fill`."""
        (self.seen(self.place) / BALLAST).unlink()

    def fail(self) -> None:
        """The kernel finds an error on it, and from now on lets nobody write there."""
        Path(f"/sys/fs/ext4/{self.device}/trigger_fs_error").write_text("1")

    def mend(self) -> None:
        """Look it over, as a machine does when it starts."""
        self._let_go()
        subprocess.run(["e2fsck", "-fy", str(self._image)], capture_output=True, check=False)  # 1: it was mended
        self._hold()

    def lock(self) -> None:
        """Mount it read-only; nobody may write there just now."""
        _run(*self.prefix, "mount", "-o", "remount,ro", str(self.place))

    def unlock(self) -> None:
        _run(*self.prefix, "mount", "-o", "remount,rw", str(self.place))

    @property
    def _pid(self) -> int:
        assert self._holder is not None, "it is not mounted"
        return self._holder.pid

    def _hold(self) -> None:
        shell = ("sh", "-c", _HOLD, str(self._image), str(self.place))
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", *shell],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._holder.stdout is not None
        if (told := self._holder.stdout.readline()) != "held\n":
            self._holder.communicate(timeout=EXIT_S)
            self._holder = None
            raise RuntimeError(told.strip())

    def _let_go(self) -> None:
        if self._holder is None:
            return
        deadline = time.monotonic() + EXIT_S
        while subprocess.run([*self.prefix, "umount", str(self.place)], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, f"somebody still uses the disk at {self.place}"
            time.sleep(0.05)  # whoever was killed a moment ago ends in its own time
        self._holder.communicate(timeout=EXIT_S)
        self._holder = None


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
