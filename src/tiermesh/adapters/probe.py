"""Is the daemon that we expect at this address? One `GET /health`, over a connection of its own."""

from __future__ import annotations

import asyncio
import errno
import socket
import time

import aiohttp
from pydantic import ValidationError

from tiermesh.protocol.cluster import HealthReport, NodeName
from tiermesh.protocol.diagnose import Probe, Problem

ANSWER_S = 2.0
"""A home's network answers in milliseconds and a VPN in tenths of seconds; a saturated machine may take a second."""

AT_ONCE = 64
"""Connections opened at the same time: many nodes with many addresses must not run out of file descriptors."""

BODY_LIMIT_BYTES = 64 * 1024
"""More than any daemon says of its health: whoever sends more is no daemon."""

_BY_ERRNO: dict[int, Problem] = {
    errno.ECONNREFUSED: "refused",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EADDRNOTAVAIL: "unreachable",
    errno.ETIMEDOUT: "timeout",
}


def open_session() -> aiohttp.ClientSession:
    """For any number of probes. Connections are not kept, so that each probe's latency holds the connect."""
    connector = aiohttp.TCPConnector(limit=AT_ONCE, force_close=True)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None, sock_connect=ANSWER_S))


async def probe(http: aiohttp.ClientSession, address: str, node_id: str, name: str) -> Probe:
    """Ask `address`, where node `node_id` called `name` should be. Never raises for what the network does."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(ANSWER_S), http.get(f"http://{address}/health", allow_redirects=False) as response:
            raw = await response.content.read(BODY_LIMIT_BYTES)
    except TimeoutError:
        return Probe(address=address, problem="timeout", detail=f"no answer within {ANSWER_S:g} s")
    except (aiohttp.ClientError, OSError) as error:
        return Probe(address=address, problem=_problem(error), detail=str(error) or type(error).__name__)
    took_s = time.monotonic() - started
    try:
        health = HealthReport.model_validate_json(raw)
    except ValidationError:
        return Probe(address=address, problem="stranger", detail=f"HTTP {response.status} from no Tiermesh daemon")
    return _judged(address, health, took_s, node_id, name)


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
