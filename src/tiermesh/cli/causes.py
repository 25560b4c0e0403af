"""What a failed check most likely means, and what to do about it. Pure: from what was seen to two sentences."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiermesh.protocol.diagnose import Probe

CONTAINER_NETWORKS = ("172.17.0.0/16", "172.18.0.0/15", "172.20.0.0/14", "10.88.0.0/16", "192.168.122.0/24")
"""What Docker, Podman and libvirt give their bridges: each machine has the same ones, and they lead nowhere else."""

VPN_NETWORKS = ("100.64.0.0/10", "fd7a:115c:a1e0::/48")
"""Carrier-grade space that VPNs such as Tailscale use for their members."""


@dataclass(frozen=True, slots=True)
class Advice:
    """The likely cause, and the remedy."""

    cause: str
    remedy: str


def of_probe(probe: Probe, *, asker: str, target: str, asker_id: str | None = None, otherwise_reached: bool) -> Advice:
    """Why `asker` does not reach `target` at this address. `otherwise_reached`: it does at another of its addresses.

    Only for a probe with a problem.
    """
    host, _, port = probe.address.rpartition(":")
    narrow = f"start {target} with `--interface` and the name of its LAN interface, so that it announces only that one"
    if probe.problem == "twin":
        return twin(target, probe.answered_by.name if probe.answered_by else "another node")
    if probe.problem == "wrong_node" and probe.answered_by is not None and probe.answered_by.id == asker_id:
        return Advice(f"both machines have the address {host}, as container bridges (docker0) do", narrow)
    if probe.problem == "stranger":
        return Advice(f"another program listens on port {port} of {target}", f"give {target} another `--port`")
    if _is_in(host, CONTAINER_NETWORKS):
        return Advice(f"{host} belongs to a container bridge (Docker, Podman, libvirt), which ends at {target}", narrow)
    if _is_in(host, VPN_NETWORKS):
        return Advice(
            f"{host} is a VPN address, and {asker} is not in that VPN or the VPN is off",
            f"join it to the VPN, or {narrow}",
        )
    if _is_in(host, ("127.0.0.0/8", "::1/128")):
        return Advice(f"{target} announces its loopback address, which no other machine reaches", narrow)
    if probe.problem == "wrong_node":
        return Advice(f"two machines have the address {host}", "give each machine its own address, then restart both")
    return _of_silence(probe, asker, target, port, narrow if otherwise_reached else None)


def _of_silence(probe: Probe, asker: str, target: str, port: str, narrow: str | None) -> Advice:
    """The address is an ordinary one, and nobody answers there."""
    if probe.problem == "refused":
        return Advice(
            f"nothing listens on port {port} there: the daemon of {target} has just ended, or listens elsewhere",
            narrow or f"run `mesh up` on {target} and look at the address it prints",
        )
    if probe.problem == "unreachable":
        return Advice(
            f"{asker} has no route to it: another network, a wrong interface, or a VPN that is off",
            narrow
            or "bring both machines into one network, or choose the interface that joins them with `--interface`",
        )
    if probe.problem == "unresolved":
        return Advice("the name has no address", "use an IP address, or repair the name's DNS entry")
    if probe.problem == "timeout":
        opened = (
            f"allow TCP port {port} on {target} (Linux: `sudo ufw allow {port}/tcp`; macOS: allow incoming connections "
            "for Python; WSL2: networkingMode=mirrored)"
        )
        return Advice(f"a firewall on {target} drops what {asker} sends, or {target} sleeps", narrow or opened)
    return Advice(f"{target} broke off the connection: it is overloaded, or a proxy stands between", "look at its log")


def down(name: str) -> Advice:
    """The mesh has marked the node down."""
    return Advice(
        "its machine is off, asleep or disconnected, or its daemon ended",
        f"wake it, and run `mesh up` on {name}; a node that never returns is forgotten after 24 hours",
    )


def twin(name: str, other: str) -> Advice:
    """Two daemons with one node id."""
    return Advice(
        f"{name} and {other} have the same node id: a state folder was copied",
        f"stop {other}, delete its state folder, and start it again: it will take a new id",
    )


def version(name: str, has: str, newest: str) -> Advice:
    """Different versions of Tiermesh in one mesh."""
    return Advice(f"{name} runs {has}, others run {newest}", f"update {name}: `pip install --upgrade tiermesh`")


def clock(name: str) -> Advice:
    """Clocks apart."""
    return Advice("its clock is not kept by a time server", f"turn on time synchronisation (NTP) on {name}")


def token(name: str) -> Advice:
    """It refused this caller's token."""
    return Advice(
        f"{name} was started with another token",
        f"set the same MESH_TOKEN on every node and for this command, then restart {name}",
    )


def silent(name: str) -> Advice:
    """It answers to `/health` and to nothing else."""
    return Advice(f"the daemon of {name} failed while it tested itself", f"look at the log of `mesh up` on {name}")


def engine(name: str, engine: str) -> Advice:
    """An engine gave no token."""
    return Advice(
        f"the engine {engine} of {name} does not work", f"look at the log of {engine} and of `mesh up` on {name}"
    )


def disagreement(name: str) -> Advice:
    """A node follows somebody else."""
    return Advice(
        "the mesh is split, or an election is running",
        f"try again in a few seconds; if it stays, look at what {name} reaches",
    )


def _is_in(host: str, networks: tuple[str, ...]) -> bool:
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return any(ip in ipaddress.ip_network(network) for network in networks)
