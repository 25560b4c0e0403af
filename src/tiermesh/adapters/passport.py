"""How two daemons prove to one another that they belong together before anything else is said.

Both sides send the same headers, in the request and in its answer, so that a wrong cluster, a wrong version, a twin
or a stranger is known before the first message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from tiermesh.core.messages import PROTOCOL, PROTOCOL_MINIMUM
from tiermesh.errors import DuplicateNode, Forbidden, IncompatibleVersion, WrongCluster
from tiermesh.types import NodeId, SessionId

HEADER_PROTOCOL = "X-Mesh-Protocol"
HEADER_PROTOCOL_MINIMUM = "X-Mesh-Protocol-Minimum"
HEADER_CLUSTER = "X-Mesh-Cluster"
HEADER_PEER = "X-Mesh-Peer"
HEADER_SESSION = "X-Mesh-Session"


STAMPS = 1024
"""Read ones that are remembered, as many as the largest mesh has: a peer shows the same one with every prompt."""

_NODE_ID = re.compile(r"[0-9a-f]{32}")
_SESSION = re.compile(r"[0-9]{13}-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a peer says of itself in the headers."""

    protocol: int
    minimum: int
    cluster: str
    node_id: NodeId
    session: SessionId


@dataclass(frozen=True, slots=True)
class Passport:
    """This node's own stamp, and the judgement over others'."""

    cluster: str
    node_id: NodeId
    session: SessionId
    token: str | None = field(default=None, repr=False)

    @property
    def stamp(self) -> dict[str, str]:
        """For every answer to a peer."""
        return {
            HEADER_PROTOCOL: str(PROTOCOL),
            HEADER_PROTOCOL_MINIMUM: str(PROTOCOL_MINIMUM),
            HEADER_CLUSTER: self.cluster,
            HEADER_PEER: self.node_id,
            HEADER_SESSION: self.session,
        }

    @property
    def headers(self) -> dict[str, str]:
        """For every request to a peer: the stamp, and the token when there is one."""
        return self.stamp | ({"Authorization": f"Bearer {self.token}"} if self.token else {})

    def judge(self, stamp: Stamp) -> None:
        """Raises `WrongCluster`, `IncompatibleVersion` or `DuplicateNode`; the token is the middleware's business."""
        if stamp.cluster != self.cluster:
            raise WrongCluster(f"this node belongs to cluster {self.cluster!r}, not {stamp.cluster!r}")
        if stamp.protocol < PROTOCOL_MINIMUM or stamp.minimum > PROTOCOL:
            raise IncompatibleVersion(
                f"this node speaks mesh protocol {PROTOCOL_MINIMUM} to {PROTOCOL}, the other one {stamp.minimum} to "
                f"{stamp.protocol}: update the older one"
            )
        if stamp.node_id == self.node_id:
            raise DuplicateNode(f"node id {self.node_id} is this node's own")


def read_stamp(given: Mapping[str, str]) -> Stamp:
    """The peer's stamp. Raises `Forbidden` when it is missing or unreadable: no daemon speaks there."""
    try:
        return _stamp(
            given[HEADER_PROTOCOL],
            given[HEADER_PROTOCOL_MINIMUM],
            given[HEADER_CLUSTER],
            given[HEADER_PEER],
            given[HEADER_SESSION],
        )
    except KeyError as error:
        raise Forbidden(f"not a Tiermesh peer: header {error} is missing") from None
    except ValueError as error:
        raise Forbidden(f"not a Tiermesh peer: {error}") from None


@lru_cache(maxsize=STAMPS)
def _stamp(protocol: str, minimum: str, cluster: str, node_id: str, session: str) -> Stamp:
    return Stamp(int(protocol), int(minimum), cluster, checked_node_id(node_id), checked_session(session))


def checked_node_id(text: str) -> NodeId:
    """Raises ValueError for what is no node's id: it is kept on disk, compared and shown."""
    if not _NODE_ID.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no node id")
    return NodeId(text)


def checked_session(text: str) -> SessionId:
    """Raises ValueError for what is no session; of two runs of one node the younger ends."""
    if not _SESSION.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no session")
    return SessionId(text)
