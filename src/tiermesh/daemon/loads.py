"""How busy other nodes are, as well as one node can know it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tiermesh.types import NodeId, View


@dataclass(slots=True)
class Loads:
    """Running requests by node: what the view says, and what this node has sent since the view was last corrected."""

    in_flight: Counter[NodeId] = field(default_factory=Counter)
    _counted: dict[NodeId, int] = field(default_factory=dict)
    """Of our requests in flight, how many a node had when it last told its load."""
    _told: dict[NodeId, int] = field(default_factory=dict)

    def view_changed(self, view: View) -> None:
        """Where a node tells another load than before, what was sent to it until now is in it."""
        for node, member in view.members.items():
            if self._told.get(node) != member.status.load.active:
                self._told[node] = member.status.load.active
                self._counted[node] = self.in_flight[node]
        for node in self._told.keys() - view.members.keys():
            del self._told[node], self._counted[node]
        for node in [node for node, ours in self.in_flight.items() if not ours and not self._counted.get(node)]:
            del self.in_flight[node]

    def estimate(self, view: View) -> dict[NodeId, int]:
        """Running requests of every node whose load the view does not tell exactly, as far as this node can know."""
        return {
            node: max(ours, view.members[node].status.load.active + ours - counted)
            for node in self.in_flight.keys() & view.members.keys()
            if (ours := self.in_flight[node]) != (counted := self._counted.get(node, 0))
        }
