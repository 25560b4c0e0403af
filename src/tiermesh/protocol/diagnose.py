"""`POST /api/cluster/test`: what one node finds when it tries its own engines and every other member."""

from __future__ import annotations

from typing import Literal

from tiermesh.protocol.cluster import NodeName
from tiermesh.protocol.validation import Wire

Problem = Literal["refused", "timeout", "unreachable", "unresolved", "broken", "stranger", "wrong_node", "twin"]
"""`stranger`: something answers, but no daemon. `wrong_node`: a daemon answers, but another one. `twin`: one with the
right id and another name: a copied state folder."""


class Probe(Wire):
    """One address of one node, asked for `/health`. `problem` None: it answered as it should.

    `skew_s` is its clock minus the asker's, corrected by half the round trip.
    """

    address: str
    problem: Problem | None = None
    detail: str | None = None
    latency_ms: float | None = None
    skew_s: float | None = None
    answered_by: NodeName | None = None
    version: str | None = None


class PeerProbes(Wire):
    """All addresses of one other member."""

    id: str
    name: str
    probes: list[Probe]


class EngineTrial(Wire):
    """A completion of one token by one engine of the node itself. `problem` None: it answered."""

    engine: str
    model: str
    latency_ms: float | None = None
    problem: str | None = None


class DiagnoseReport(Wire):
    """`node` tried these."""

    node: NodeName
    version: str
    engines: list[EngineTrial]
    peers: list[PeerProbes]
