"""Which node has a conversation in its cache: the one that answered its last turn."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

import msgspec

from tiermesh.protocol import quick_json
from tiermesh.types import NodeId

KEPT = 4096
"""Conversations remembered; a node's cache holds far fewer. The one longest unused is forgotten first."""

LONGEST = 64
"""Turns looked back: whoever removes more than that from a conversation has begun another one."""


class Prefix(msgspec.Struct, frozen=True):
    """A conversation up to now, and the node that has read most of it."""

    digest: bytes
    node: NodeId | None


class Affinity:
    """What this node has routed, by conversation. A conversation is told by all of its messages so far."""

    def __init__(self) -> None:
        self._nodes: OrderedDict[bytes, NodeId] = OrderedDict()

    def look(self, model: str, messages: object) -> Prefix:
        """Where the longest known beginning of a conversation was answered.

        One message is no beginning: equal first messages are mostly one program asking everybody the same.
        """
        digests = _digests(model, messages)
        if not digests:
            return Prefix(b"", None)
        nodes = self._nodes
        for digest in digests[-2 : -2 - LONGEST : -1]:
            if digest in nodes:
                return Prefix(digests[-1], nodes[digest])
        return Prefix(digests[-1], None)

    def note(self, prefix: Prefix, node: NodeId) -> None:
        """The conversation was answered there."""
        if prefix.digest:
            self._nodes[prefix.digest] = node
            self._nodes.move_to_end(prefix.digest)
            if len(self._nodes) > KEPT:
                self._nodes.popitem(last=False)


def _digests(model: str, messages: object) -> list[bytes]:
    """Of each beginning of a conversation, the shortest first."""
    if not isinstance(messages, list):
        return []
    running, digests = blake2b(model.encode("utf-8", "replace"), digest_size=16), []
    for message in messages:
        running.update(quick_json.canonical(message))
        digests.append(running.digest())
    return digests
