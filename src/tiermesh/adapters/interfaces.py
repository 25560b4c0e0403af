"""Which addresses this machine has, and which of them the mesh uses."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

import ifaddr

from tiermesh.errors import InvalidConfig

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Interface:
    """One address of one network interface; `index` is the operating system's number of the interface."""

    name: str
    index: int
    ip: Ip


def all_interfaces() -> tuple[Interface, ...]:
    """Every address of every interface that is up, in the operating system's order."""
    return tuple(
        Interface(adapter.name, adapter.index or 0, ipaddress.ip_address(_text(entry.ip)))
        for adapter in ifaddr.get_adapters()
        for entry in adapter.ips
    )


def choose(wanted: str | None, found: Iterable[Interface] | None = None) -> tuple[Interface, ...]:
    """The interfaces the mesh uses: those named (a name or an address), else all.

    Loopback addresses are left out as soon as there is any other; IPv6 link-local ones always, since they mean
    nothing without a scope. Raises `InvalidConfig` when `wanted` names none.
    """
    found = tuple(all_interfaces() if found is None else found)
    usable = tuple(i for i in found if not (i.ip.version == 6 and i.ip.is_link_local))
    if wanted is not None:
        chosen = tuple(i for i in usable if wanted in (i.name, str(i.ip)))
        if not chosen:
            names = ", ".join(sorted({i.name for i in usable})) or "none"
            raise InvalidConfig(
                f"no interface or address {wanted!r} on this machine; there are: {names}", param="interface"
            )
        return chosen
    outer = tuple(i for i in usable if not i.ip.is_loopback)
    return outer or usable


def _text(ip: str | tuple[str, int, int]) -> str:
    return ip if isinstance(ip, str) else ip[0]
