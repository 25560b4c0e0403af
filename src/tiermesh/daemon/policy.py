"""Where the policy is read and changed, on whatever node it is asked for."""

from __future__ import annotations

from collections.abc import Mapping

from tiermesh.adapters.peer_requests import POLICY_PATH
from tiermesh.adapters.peers import Peers
from tiermesh.config import PolicyDocument
from tiermesh.daemon.reactor import Reactor
from tiermesh.errors import Unavailable
from tiermesh.protocol.cluster import PolicyReport
from tiermesh.types import Ballot, NodeId, Policy


class PolicyDesk:
    """The policy of the cluster, as one node deals with it."""

    def __init__(self, reactor: Reactor, peers: Peers, default: PolicyDocument) -> None:
        self._reactor = reactor
        self._peers = peers
        self._default = default

    def current(self) -> Policy:
        """What holds now."""
        return self._reactor.view.policy

    async def apply(self, body: Mapping[str, object]) -> Policy:
        """Have the coordinator publish `body`, wherever it is. Raises `InvalidConfig` or `Unavailable`."""
        document = PolicyDocument.parse(body)
        if self._reactor.leads:
            return await self._publish(document)
        view = self._reactor.view
        leader = view.members.get(view.coordinator) if view.coordinator else None
        if leader is None:
            raise Unavailable("the mesh has no coordinator just now; try again in a moment")
        answer = await self._peers.ask(leader.id, leader.status.addresses, POLICY_PATH, document.to_body())
        report = PolicyReport.model_validate(answer)
        return Policy(Ballot(report.ballot.term, NodeId(report.ballot.node_id)), report.version, report.policy)

    async def apply_here(self, body: Mapping[str, object]) -> Policy:
        """Publish `body` as coordinator. Raises `InvalidConfig`, or `Unavailable` when this node is none."""
        return await self._publish(PolicyDocument.from_body(body))

    def settle(self) -> None:
        """A mesh that has no policy yet gets the one from its first coordinator's file."""
        if self._reactor.leads and self._reactor.view.policy.version == 0:
            self._reactor.set_policy(self._default.to_body())

    async def _publish(self, document: PolicyDocument) -> Policy:
        """On disk when it returns: whoever asked for it is told that it holds."""
        policy = self._reactor.set_policy(document.to_body())
        await self._reactor.saved()
        return policy
