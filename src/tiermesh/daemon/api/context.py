"""What the handlers of one node work with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aiohttp import web

from tiermesh.adapters.engines import Engine
from tiermesh.adapters.passport import Passport
from tiermesh.daemon.gateway import Gateway
from tiermesh.types import NodeId, Policy, View


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One node, as its API sees it. The callables give what holds at the moment of the call."""

    passport: Passport
    """Who this node is; with its token, what a caller must show."""
    name: str
    version: str
    host_names: frozenset[str]
    """Names, lower case, by which a caller may address this node in `Host`, besides IP literals and local domains."""
    gateway: Gateway
    engines: Callable[[], Mapping[str, Engine]]
    view: Callable[[], View]
    wall: Callable[[], float]
    """Unix time, seconds."""
    policy: Callable[[], Policy]
    apply_policy: Callable[[Mapping[str, object]], Awaitable[Policy]]
    """Have the coordinator publish a new policy, wherever it is. Raises `InvalidConfig` or `Unavailable`."""
    publish_policy: Callable[[Mapping[str, object]], Awaitable[Policy]]
    """The same, as coordinator. Raises `InvalidConfig`, or `Unavailable` when this node is none."""
    draining: Callable[[], bool]
    """Is this node about to leave? Then it takes no work from other nodes."""

    @property
    def me(self) -> NodeId:
        """This node's id."""
        return self.passport.node_id


CONTEXT = web.AppKey("tiermesh-context", Context)
