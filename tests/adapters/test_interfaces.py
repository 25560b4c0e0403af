"""Which addresses the mesh uses."""

from __future__ import annotations

import ipaddress

import pytest

from tiermesh.adapters.interfaces import Interface, all_interfaces, choose
from tiermesh.errors import InvalidConfig


def on(name: str, ip: str) -> Interface:
    return Interface(name, 1, ipaddress.ip_address(ip))


LO, LO6 = on("lo", "127.0.0.1"), on("lo", "::1")
ETH, ETH6, LINK_LOCAL = on("eth0", "192.168.1.5"), on("eth0", "fd00::5"), on("eth0", "fe80::5")
DOCKER = on("docker0", "172.17.0.1")


@pytest.mark.parametrize(
    ("wanted", "found", "chosen"),
    [
        (None, [LO, LO6, ETH, ETH6, LINK_LOCAL, DOCKER], [ETH, ETH6, DOCKER]),
        (None, [LO, LO6], [LO, LO6]),
        ("lo", [LO, LO6, ETH], [LO, LO6]),
        ("eth0", [LO, ETH, ETH6, DOCKER], [ETH, ETH6]),
        ("fd00::5", [LO, ETH, ETH6], [ETH6]),
    ],
)
def test_choice(wanted: str | None, found: list[Interface], chosen: list[Interface]) -> None:
    assert choose(wanted, found) == tuple(chosen)


def test_an_unknown_interface_names_those_there_are() -> None:
    with pytest.raises(InvalidConfig, match=r"'wlan7'.*docker0, eth0, lo"):
        choose("wlan7", [LO, ETH, DOCKER])


def test_this_machine_has_loopback() -> None:
    assert any(i.ip.is_loopback for i in all_interfaces())
