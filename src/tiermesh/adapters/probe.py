"""Is the daemon that we expect at this address? One `GET /health`, over a connection of its own."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from types import TracebackType
from typing import Self

import aiohttp
from pydantic import ValidationError

from tiermesh.protocol.cluster import HealthReport, NodeName
from tiermesh.protocol.diagnose import Probe, Problem

ANSWER_S = 2.0
"""A home's network answers in milliseconds and a VPN in tenths of seconds; a saturated machine may take a second."""

AT_ONCE = 64
"""Probes at the same time: many nodes with many addresses must not run out of file descriptors."""

BODY_LIMIT_BYTES = 64 * 1024
"""More than any daemon says of its health: whoever sends more is no daemon."""

_BY_ERRNO: dict[int, Problem] = {
    errno.ECONNREFUSED: "refused",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EADDRNOTAVAIL: "unreachable",
    errno.ETIMEDOUT: "timeout",
}


class Prober:
    """Asks any number of addresses. Use as `async with Prober() as prober`.

    Connections are not kept, so that each probe's latency holds the connect; who waits for a turn is not timed.
    """

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()

    async def ask(self, address: str, node_id: str, name: str) -> Probe:
        """Ask `address`, where node `node_id` called `name` should be. Never raises for what the network does."""
        async with self._turns:
            started = time.monotonic()
            try:
                status, raw = await self._get(f"http://{address}/health")
            except TimeoutError:
                return Probe(address=address, problem="timeout", detail=f"no answer within {ANSWER_S:g} s")
            except (aiohttp.ClientError, OSError) as error:
                return Probe(address=address, problem=_problem(error), detail=str(error) or type(error).__name__)
            took_s = time.monotonic() - started
        try:
            health = HealthReport.model_validate_json(raw)
        except ValidationError:
            return Probe(address=address, problem="stranger", detail=f"HTTP {status} from no Tiermesh daemon")
        return _judged(address, health, took_s, node_id, name)

    async def _get(self, url: str) -> tuple[int, bytes]:
        assert self._http is not None, "enter the prober first"
        async with asyncio.timeout(ANSWER_S), self._http.get(url, allow_redirects=False) as response:
            return response.status, await response.content.read(BODY_LIMIT_BYTES)


def _judged(address: str, health: HealthReport, took_s: float, node_id: str, name: str) -> Probe:
    problem: Problem | None = None
    if health.node_id != node_id:
        problem = "wrong_node"
    elif health.node != name:
        problem = "twin"
    return Probe(
        address=address,
        problem=problem,
        detail=None if problem is None else f"{health.node} ({health.node_id[:8]}) answers there",
        latency_ms=round(took_s * 1000, 3),
        skew_s=round(health.time - (time.time() - took_s / 2), 3),
        answered_by=NodeName(id=health.node_id, name=health.node),
        version=health.version,
    )


def _problem(error: Exception) -> Problem:
    cause = getattr(error, "os_error", error)
    if isinstance(cause, socket.gaierror):
        return "unresolved"
    return _BY_ERRNO.get(getattr(cause, "errno", None) or 0, "broken")
