"""A local network made of namespaces: one a node, and one that holds the switch.

The machine's own interfaces are never touched: the switch is a bridge in a namespace of its own, and every cable (a
veth pair) runs from there into a node's namespace, where its end is called `eth0`. A cable is cut by taking its port
out of the bridge. The node's side keeps its carrier, its address and its routes: what it sends vanishes and nothing
arrives, as behind a dead switch. There is no ICMP and no RST, only silence. (Setting the port down would take the
carrier from the node's side, which the node's kernel notices at once.)
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from tests.network import netns

PREFIX = "tm"
_count = itertools.count()


class Lan:
    """`size` nodes on one switch. Use as a context manager; what was made is removed at the end, whatever happens."""

    def __init__(self, size: int) -> None:
        # The owner's pid and start time are in the name, so that a later run knows what a killed one left behind.
        self.name = f"{PREFIX}-{os.getpid()}-{_started(os.getpid())}-{next(_count)}"
        self.size = size
        self.switch = f"{self.name}-sw"

    def namespace(self, node: int) -> str:
        return f"{self.name}-n{node}"

    def address(self, node: int) -> str:
        return f"10.77.0.{node + 1}"

    def __enter__(self) -> Lan:
        remove_leftovers()
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._remove()

    def cut(self, node: int) -> None:
        """Pull the node's cable out of the switch: silence both ways."""
        netns.ip(f"link set port{node} nomaster", namespace=self.switch)

    def mend(self, node: int) -> None:
        """Plug it in again, where everybody is after `heal`."""
        netns.ip(f"link set port{node} master br0", namespace=self.switch)

    def partition(self, *groups: Sequence[int]) -> None:
        """Give each group a switch of its own. All move in one batch, within some milliseconds."""
        moves = [f"link set port{node} master br{number}" for number, group in enumerate(groups) for node in group]
        netns.ip(*moves, namespace=self.switch)

    def heal(self) -> None:
        """Everybody on one switch."""
        self.partition(range(self.size))

    def readdress(self, node: int, address: str) -> None:
        """Give the node another address, as another Wi-Fi would."""
        netns.ip(
            f"addr del {self.address(node)}/24 dev eth0",
            f"addr add {address}/24 dev eth0",
            "route replace 224.0.0.0/4 dev eth0",
            namespace=self.namespace(node),
        )

    def _make(self) -> None:
        nodes = range(self.size)
        netns.ip(
            f"netns add {self.switch}",
            *(f"netns add {self.namespace(node)}" for node in nodes),
            *(
                f"link add name port{node} netns {self.switch} type veth peer name eth0 netns {self.namespace(node)}"
                for node in nodes
            ),
        )
        # As many bridges as nodes allow every partition. Snooping would hold multicast back after a move.
        netns.ip(
            *(f"link add br{n} type bridge mcast_snooping 0 forward_delay 0" for n in nodes),
            *(f"link set br{n} up" for n in nodes),
            *(f"link set port{n} master br0 up" for n in nodes),
            namespace=self.switch,
        )
        for node in nodes:
            netns.ip(
                f"addr add {self.address(node)}/24 dev eth0",
                "link set lo up",
                "link set eth0 up",
                "route add 224.0.0.0/4 dev eth0",
                namespace=self.namespace(node),
            )

    def _remove(self) -> None:
        remove(name for name in namespaces() if name.startswith(f"{self.name}-"))


def namespaces() -> list[str]:
    """Every named namespace of this machine."""
    return [entry.name for entry in netns.FOLDER.iterdir()] if netns.FOLDER.is_dir() else []


def remove_leftovers() -> None:
    """Remove the networks of runs that were killed before they could do so."""
    remove(name for name in namespaces() if name.startswith(f"{PREFIX}-") and not _owner_lives(name))


def remove(names: Iterable[str]) -> None:
    """Kill what still runs in these namespaces of ours, and delete them."""
    for name in names:
        inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
        for pid in inside.stdout.split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _owner_lives(name: str) -> bool:
    _, pid, started, *_ = name.split("-")
    return _started(int(pid)) == int(started)


def _started(pid: int) -> int | None:
    """When a process began, in clock ticks since boot: with the pid it names one process for ever."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except FileNotFoundError:
        return None
    return int(after_name.split()[19])
