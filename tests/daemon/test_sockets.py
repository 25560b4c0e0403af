"""One port on every address; the next free one when nobody chose."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tiermesh.adapters.interfaces import choose
from tiermesh.daemon.sockets import listen
from tiermesh.errors import InvalidConfig

LOOPBACK = choose("127.0.0.1")


def test_a_taken_port_moves_on_or_is_refused() -> None:
    first, port = listen(LOOPBACK, 0, may_move=False)
    try:
        second, next_port = listen(LOOPBACK, port, may_move=True)
        for sock in second:
            sock.close()
        assert port < next_port <= port + 50
        with pytest.raises(InvalidConfig, match=rf"port {port} is taken.*--port"):
            listen(LOOPBACK, port, may_move=False)
    finally:
        for sock in first:
            sock.close()


def test_loopback_is_always_among_the_named_addresses() -> None:
    sockets, port = listen(choose("lo"), 0, may_move=False)
    try:
        assert {s.getsockname()[:2] for s in sockets} == {("127.0.0.1", port), ("::1", port)}
    finally:
        for sock in sockets:
            sock.close()


@pytest.mark.parametrize(
    ("soft", "hard", "expected"), [(64, 4096, 4096), (64, 20_000, 10_000), (15_000, 20_000, 15_000)]
)
def test_a_daemon_may_open_as_many_files_as_it_is_let(soft: int, hard: int, expected: int) -> None:
    script = (
        "import resource, sys\n"
        "from tiermesh.daemon.sockets import allow_connections\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, tuple(map(int, sys.argv[1:])))\n"
        "allow_connections()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )
    command = [sys.executable, "-c", script, str(soft), str(hard)]
    assert subprocess.run(command, capture_output=True, timeout=60, check=True).stdout == b"%d\n" % expected
