"""Linux network namespaces: sockets of this process that live in another one, and why there may be none here."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = Path("/var/run/netns")
_CLONE_NEWNET = 0x40000000


def obstacle() -> str | None:
    """Why namespaces can't be made here, for a skipped test; None: they can."""
    if sys.platform != "linux":
        return "network namespaces exist on Linux only"
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    if shutil.which("ip") is None:
        return "making network namespaces needs iproute2 (apt-get install iproute2)"
    probe = f"tmprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"this machine makes no network namespaces: {made.stderr.strip()}"
    ip(f"netns del {probe}")
    return None


def ip(*commands: str, namespace: str | None = None) -> None:
    """Run commands of ip(8) as one batch: one process, a few milliseconds. Raises at the first that fails."""
    where = [] if namespace is None else ["-n", namespace]
    done = subprocess.run(
        ["ip", *where, "-batch", "-"], input="\n".join(commands), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(where)}: {done.stderr.strip()} in {commands}")


@contextmanager
def inside(namespace: str | None) -> Iterator[None]:
    """Sockets made by this thread meanwhile belong to `namespace` for ever (None: where we are). Never await in it."""
    if namespace is None:
        yield
        return
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        there = os.open(FOLDER / namespace, os.O_RDONLY)
        try:
            _setns(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def dialler(namespace: str | None) -> Callable[[tuple[Any, ...]], socket.socket]:
    """A socket factory for aiohttp's connector: what connects, connects from inside `namespace`."""

    def make(address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, _ = address
        with inside(namespace):
            made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made

    return make


def listener(namespace: str | None, host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A listening socket inside `namespace`."""
    with inside(namespace):
        return socket.create_server((host, port))


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
