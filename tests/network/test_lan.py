"""The network that the other tests trust: a cut is silence and nothing else."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.network import netns
from tests.network.lan import PREFIX, Lan, namespaces, remove_leftovers

pytestmark = pytest.mark.network
SILENCE_S = 0.5


def connect(lan: Lan, a: int, b: int) -> tuple[socket.socket, socket.socket]:
    with netns.listener(lan.namespace(b), lan.address(b)) as server:
        with netns.inside(lan.namespace(a)):
            client = socket.create_connection(server.getsockname(), timeout=5)
        accepted, _ = server.accept()
    accepted.settimeout(5)
    return client, accepted


def test_a_cut_is_silence_for_both_sides_and_a_mended_cable_delivers(make_lan: Callable[[int], Lan]) -> None:
    lan = make_lan(2)
    client, server = connect(lan, 0, 1)
    with client, server:
        lan.cut(0)
        carrier = subprocess.check_output(
            ["ip", "netns", "exec", lan.namespace(0), "cat", "/sys/class/net/eth0/carrier"], text=True
        )
        assert carrier.strip() == "1", "the node's own side must notice nothing"
        client.sendall(b"lost")
        server.settimeout(SILENCE_S)
        with pytest.raises(TimeoutError):
            server.recv(4)
        server.sendall(b"also")
        client.settimeout(SILENCE_S)
        with pytest.raises(TimeoutError):
            client.recv(4)
        lan.mend(0)
        server.settimeout(10)
        client.settimeout(10)
        assert (server.recv(4), client.recv(4)) == (b"lost", b"also"), "TCP repeats what was lost"


def test_groups_of_a_partition_hear_their_own_side_only(make_lan: Callable[[int], Lan]) -> None:
    lan = make_lan(3)
    lan.partition([0, 1], [2])
    client, server = connect(lan, 0, 1)
    with client, server:
        client.sendall(b"here")
        assert server.recv(4) == b"here"
    with (
        netns.listener(lan.namespace(2), lan.address(2)) as far,
        netns.inside(lan.namespace(0)),
        pytest.raises(TimeoutError),
    ):
        socket.create_connection(far.getsockname(), timeout=SILENCE_S)
    lan.heal()
    client, server = connect(lan, 0, 2)
    client.close()
    server.close()


def test_the_networks_of_killed_runs_are_removed_and_nobody_elses(make_lan: Callable[[int], Lan]) -> None:
    living = make_lan(1)
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    leftover = f"{PREFIX}-{gone.pid}-1-0-n0"
    netns.ip(f"netns add {leftover}")
    remove_leftovers()
    assert leftover not in namespaces()
    assert living.namespace(0) in namespaces()


def test_the_machines_own_interfaces_stay_as_they_were(make_lan: Callable[[int], Lan]) -> None:
    before = sorted(entry.name for entry in Path("/sys/class/net").iterdir())
    with Lan(2) as lan:
        assert sorted(entry.name for entry in Path("/sys/class/net").iterdir()) == before
        assert f"-{os.getpid()}-" in lan.name
    assert not [name for name in namespaces() if name.startswith(lan.name)]
