"""A run on this machine told to wait and to go on, by a file in its folder that the worker looks for."""

from __future__ import annotations

import fcntl
import shlex
from pathlib import Path

from tiermesh.cli.run_plan import begun_plan
from tiermesh.errors import InvalidSpec, NotPossibleNow, StateUnwritable
from tiermesh.protocol.run_folder import RunFolder


def pause(path: Path) -> str:
    """Let the worker there wait at the end of its step; what is to be said of it. Raises `InvalidSpec`,
    `NotPossibleNow`, `StateUnwritable`."""
    folder = _run(path)
    if not is_training(folder):
        raise NotPossibleNow(f"{path}: no worker trains there now; {_again(folder)} goes on with it")
    if folder.pause.exists():
        return "it is paused already"
    try:
        folder.pause.touch()
    except OSError as error:
        raise _unwritable(folder, error) from error
    return f"it waits from the end of its step on; `mesh train resume {shlex.quote(str(path))}` lets it go on"


def resume(path: Path) -> str:
    """Take the pause back; what is to be said of it. Raises as `pause` does."""
    folder = _run(path)
    if not folder.pause.exists():
        raise NotPossibleNow(f"{path} is not paused; a worker that was paused by SIGUSR1 goes on by SIGUSR2")
    lift(folder)
    return "it goes on" if is_training(folder) else f"no worker trains there now; {_again(folder)} goes on with it"


def lift(folder: RunFolder) -> None:
    """As if it had never been paused."""
    try:
        folder.pause.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def is_training(folder: RunFolder) -> bool:
    """Does somebody hold its lock?"""
    try:
        with folder.lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _run(path: Path) -> RunFolder:
    folder = RunFolder(path.absolute())
    if not path.exists() or begun_plan(folder) is None:
        raise InvalidSpec(f"{path} holds no run", param="run")
    return folder


def _again(folder: RunFolder) -> str:
    return f"`mesh train run --local --out {shlex.quote(str(folder.path))}`"


def _unwritable(folder: RunFolder, error: OSError) -> StateUnwritable:
    return StateUnwritable(f"{folder.pause} can't be changed: {(error.strerror or 'unknown reason').lower()}")
