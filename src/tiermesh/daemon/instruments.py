"""All that this node measures, put together: health, requests, and the mesh in figures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

from aiohttp import web

from tiermesh.adapters.engines import Engine
from tiermesh.adapters.peers import Peers
from tiermesh.core.breaker import BreakerState
from tiermesh.core.offers import CandidateKey
from tiermesh.daemon.api.health import HealthDesk, register_health
from tiermesh.daemon.api.metrics import register_metrics
from tiermesh.daemon.gateway import Gateway
from tiermesh.daemon.gauges import MeshGauges
from tiermesh.daemon.metrics import RequestLog
from tiermesh.daemon.portrait import total_load
from tiermesh.daemon.survey import Survey
from tiermesh.daemon.vitals import VitalsWatch
from tiermesh.hardware.health import Examiner
from tiermesh.types import Health, Load, NodeId, Status, View


class Instruments:
    """Of one node. `start` looks at the machine from then on; `close` ends it."""

    def __init__(
        self,
        *,
        me: NodeId,
        folder: Path,
        view: Callable[[], View],
        engines: Callable[[], Iterable[Engine]],
        peers: Peers,
        gateway: Gateway,
        log: RequestLog,
        on_health: Callable[[Health], None],
    ) -> None:
        self._me = me
        self._view = view
        self._engines = engines
        self._gateway = gateway
        self._log = log
        self._survey = Survey(me, view, peers)
        self._gauges = MeshGauges(
            log.registry,
            me=me,
            view=view,
            load=self._load,
            waiting=gateway.dispatch.waiting.lengths,
            breakers=self._breakers,
        )
        self._watch = VitalsWatch(
            Examiner(folder).look,
            engines=lambda: [engine.info for engine in engines()],
            latency_ms=self._latency_ms,
            busy=lambda: self._load().active > 0,
            on_health=on_health,
        )

    def start(self) -> None:
        """Begin to look at the machine."""
        self._watch.start()

    async def close(self) -> None:
        """Stop it. May be called twice."""
        await self._watch.close()

    def register(self, app: web.Application) -> None:
        """Add the routes that tell it."""
        register_health(app, HealthDesk(self._watch, self._survey))
        register_metrics(app, self._log.registry, self._log.tally, self._survey)

    def view_changed(self, view: View) -> None:
        """The mesh changed."""
        self._gauges.view_changed(view)

    def described(self, status: Status) -> None:
        """This node changed."""
        if status.load.active:
            self._watch.worked()

    def _load(self) -> Load:
        return total_load(engine.load for engine in self._engines())

    def _latency_ms(self) -> float | None:
        member = self._view().members.get(self._me)
        return None if member is None else member.status.latency_ms

    def _breakers(self) -> dict[CandidateKey, BreakerState]:
        facts = self._gateway.dispatch.conduct.facts(asyncio.get_running_loop().time())
        return {key: fact.breaker for key, fact in facts.items()}
