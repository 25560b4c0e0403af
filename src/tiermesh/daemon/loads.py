"""How busy other nodes are, as well as one node can know it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tiermesh.types import NodeId, View


@dataclass(slots=True)
class Loads:
    """Requests by node, running or waiting: what the view says, and what this node has sent since."""

    in_flight: Counter[NodeId] = field(default_factory=Counter)
    _counted: dict[NodeId, int] = field(default_factory=dict)
    """Of our requests in flight, how many a node had when it last told its load."""
    _told: dict[NodeId, int] = field(default_factory=dict)

    def view_changed(self, view: View) -> None:
        """Where a node tells another load than before, what was sent to it until now is in it."""
        for node, member in view.members.items():
            load = member.status.load
            if self._told.get(node) != load.active + load.queued:
                self._told[node] = load.active + load.queued
                self._counted[node] = self.in_flight[node]
        for node in self._told.keys() - view.members.keys():
            del self._told[node], self._counted[node]
        for node in [node for node, ours in self.in_flight.items() if not ours and not self._counted.get(node)]:
            del self.in_flight[node]

    def estimate(self, view: View) -> dict[NodeId, int]:
        """Requests of every node whose load the view does not tell exactly, as far as this node can know."""
        return {
            node: max(ours, self._told.get(node, 0) + ours - counted)
            for node, ours in self.in_flight.items()
            if ours != (counted := self._counted.get(node, 0)) and node in view.members
        }
