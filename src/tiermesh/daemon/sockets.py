"""The sockets a daemon listens on: one port, the same on every address."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
from collections.abc import Iterable

from tiermesh.adapters.interfaces import Interface
from tiermesh.errors import InvalidConfig

PORTS_TRIED = 50
"""When nobody chose the port and it is taken, this many after it are tried."""

BACKLOG = 1024

DESCRIPTORS = 10_000
"""Every request, its engine and every link take one each. macOS allows 10240 without being asked nicely."""


def listen(interfaces: Iterable[Interface] | None, port: int, *, may_move: bool) -> tuple[list[socket.socket], int]:
    """Listening sockets and their port. `interfaces` None means every address there is or will be.

    Given some, loopback is added, so that commands on this machine find the daemon. Raises `InvalidConfig`.
    """
    hosts = _hosts(interfaces)
    last = port + PORTS_TRIED if may_move and port else port
    for candidate in range(port, last + 1):
        try:
            return _bind_all(hosts, candidate)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise InvalidConfig(f"can't listen on port {candidate}: {error.strerror}", param="port") from error
    taken = f"port {port} is taken" if last == port else f"ports {port} to {last} are taken"
    raise InvalidConfig(f"{taken} by other programs on this machine; choose another with --port", param="port")


def allow_connections() -> None:
    """Let this process open `DESCRIPTORS` files, as far as it may: shells give it 1024, or 256 on macOS."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _hosts(interfaces: Iterable[Interface] | None) -> list[str]:
    if interfaces is None:
        return ["0.0.0.0", "::"] if _has_ipv6() else ["0.0.0.0"]  # noqa: S104 - trust is judged per request
    return list(dict.fromkeys(["127.0.0.1", *(str(i.ip) for i in interfaces)]))


def _bind_all(hosts: list[str], port: int) -> tuple[list[socket.socket], int]:
    sockets: list[socket.socket] = []
    try:
        for host in hosts:
            sockets.append(_bind(host, port))
            port = sockets[0].getsockname()[1]
    except BaseException:
        for opened in sockets:
            opened.close()
        raise
    return sockets, port


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True
