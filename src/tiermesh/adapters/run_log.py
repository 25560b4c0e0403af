"""A run's log: `worker.log`, and what of it was moved aside when it had grown too long."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from tiermesh.protocol.job_orders import LogTold
from tiermesh.protocol.run_folder import RunFolder

LOG_BYTES = 1 << 20
"""Told at once to whoever follows it."""
WHOLE_LOG_BYTES = 4 << 20
"""Told at once of all that is kept, which is two files of 1 MiB (`adapters.process`)."""


def read_last_lines(folder: RunFolder, lines: int) -> LogTold:
    """The last ones of a run's log, from before it was moved aside too; 0: all, and whole ones only where more than
    `WHOLE_LOG_BYTES` are there. Blocks."""
    with ExitStack() as stack:
        newer = _opened(folder.log, stack)  # first: moved aside now, it is the older one, and not read twice
        older = _opened(folder.older_log, stack)
        if newer is not None and older is not None and os.path.sameopenfile(newer.fileno(), older.fileno()):
            older = None
        block, offset, is_cut = _end(newer, WHOLE_LOG_BYTES)
        if not is_cut:
            before, _, is_cut = _end(older, WHOLE_LOG_BYTES - len(block))
            block = before + block
    if is_cut:
        block = block.partition(b"\n")[2]
    if lines:
        each = block.split(b"\n")
        block = b"\n".join(each[-lines - 1 :] if block.endswith(b"\n") else each[-lines:])
    return LogTold(text=block.decode("utf-8", "replace"), offset=offset)


def read_after(folder: RunFolder, after: int) -> LogTold:
    """What follows this byte of it, `LOG_BYTES` at most. Blocks."""
    try:
        with folder.log.open("rb") as file:
            start = min(after, file.seek(0, 2))
            file.seek(start)
            block = file.read(LOG_BYTES)
    except FileNotFoundError:
        return LogTold(text="", offset=0)
    return LogTold(text=block.decode("utf-8", "replace"), offset=start + len(block))


def _opened(path: Path, stack: ExitStack) -> BinaryIO | None:
    try:
        return stack.enter_context(path.open("rb"))
    except FileNotFoundError:
        return None


def _end(file: BinaryIO | None, size: int) -> tuple[bytes, int, bool]:
    """Its last bytes, where it ends, and whether there are more before."""
    if file is None:
        return b"", 0, False
    start = max(0, file.seek(0, 2) - size)
    file.seek(start)
    block = file.read(size)
    return block, start + len(block), start > 0
