"""Sums over the requests that this node carried: by the node that worked, and over all. What `GET /api/metrics` tells.

The same request counts once in the whole, and once with every node that was tried for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tiermesh.types import NodeId

MAX_NODES = 1000
"""As many as the largest mesh that is simulated; the one unused for longest is forgotten for a new one."""


@dataclass(slots=True)
class Sums:
    """Of attempts at one node, or of whole requests. Times are of those that ended well."""

    name: str = ""
    ok: int = 0
    failed: int = 0
    abandoned: int = 0
    """Left by the client: nobody's success or failure."""
    took_s: float = 0.0
    first_token_s: float = 0.0
    first_tokens: int = 0
    tokens: int = 0
    """Completion tokens, all of them."""
    timed_tokens: int = 0
    """Those whose making took `making_s`, request by request: two at a time count twice."""
    making_s: float = 0.0
    last_wall: float | None = None

    @property
    def requests(self) -> int:
        return self.ok + self.failed + self.abandoned


@dataclass(slots=True)
class Tally:
    """Since the daemon's start. Bounded."""

    whole: Sums = field(default_factory=Sums)
    nodes: dict[NodeId, Sums] = field(default_factory=dict)
    """In the order of their last request."""

    def finished(self, outcome: str, took_s: float, wall: float) -> None:
        """A request is over, whoever was tried for it. A refused one is answered: the caller was wrong."""
        whole = self.whole
        whole.last_wall = wall
        if outcome in ("ok", "refused"):
            whole.ok += 1
            whole.took_s += took_s
        elif outcome == "cancelled":
            whole.abandoned += 1
        else:
            whole.failed += 1

    def attempted(
        self,
        node: NodeId,
        name: str,
        trial: str,
        *,
        took_s: float,
        first_token_s: float | None,
        tokens: int,
        timed_tokens: int,
        making_s: float,
        wall: float,
    ) -> None:
        """An attempt at `node` is over."""
        sums = self.nodes.pop(node, None) or Sums()
        if len(self.nodes) >= MAX_NODES:
            del self.nodes[next(iter(self.nodes))]
        self.nodes[node] = sums
        sums.name, sums.last_wall = name, wall
        if trial == "ok":
            sums.ok += 1
            sums.took_s += took_s
        elif trial == "failed":
            sums.failed += 1
        else:
            sums.abandoned += 1
        if first_token_s is not None:
            sums.first_tokens += 1
            sums.first_token_s += first_token_s
        if tokens:
            for each in (sums, self.whole):
                each.tokens += tokens
                each.timed_tokens += timed_tokens
                each.making_s += making_s
