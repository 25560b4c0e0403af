"""`runtime.json` in the state folder: how commands on this machine find a daemon that has no usual port."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from tiermesh.errors import StateUnwritable

FILE_NAME = "runtime.json"


def write(folder: Path, *, port: int, url: str, node_id: str) -> None:
    """Replace the file whole. Raises `StateUnwritable`."""
    staged = folder / f".{FILE_NAME}.new"
    try:
        staged.write_text(json.dumps({"pid": os.getpid(), "port": port, "url": url, "node_id": node_id}), "utf-8")
        staged.replace(folder / FILE_NAME)
    except OSError as error:
        raise StateUnwritable(
            f"the state folder {folder} can't be written: {error.strerror}. Free or repair the disk, then start again"
        ) from error


def remove(folder: Path) -> None:
    """The daemon ends."""
    with contextlib.suppress(OSError):
        (folder / FILE_NAME).unlink()
