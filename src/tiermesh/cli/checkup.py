"""`mesh cluster test`: every node proved end to end, from here and by one another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

from tiermesh.adapters.probe import open_session, probe
from tiermesh.cli import causes
from tiermesh.cli.causes import Advice
from tiermesh.client import RemoteClient
from tiermesh.errors import TiermeshError, Unauthenticated
from tiermesh.protocol.cluster import ClusterReport, NodeReport
from tiermesh.protocol.diagnose import DiagnoseReport, PeerProbes, Probe

SKEW_LIMIT_S = 2.0
"""Nothing of the mesh depends on wall clocks; people who compare times across nodes do."""

ASK_LIMIT_S = 180.0
"""One node's own tests: longer than its longest trial."""

HERE = "this machine"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of one node; `advice` exactly when it failed."""

    node: str
    check: str
    detail: str
    advice: Advice | None = None

    @property
    def ok(self) -> bool:
        return self.advice is None


@dataclass(frozen=True, slots=True)
class _Visit:
    """What was seen of one node from here. `diagnosis` and `cluster` are None when it could not be asked."""

    node: NodeReport
    probes: tuple[Probe, ...]
    diagnosis: DiagnoseReport | None = None
    cluster: ClusterReport | None = None
    refusal: TiermeshError | None = None

    @property
    def skew_s(self) -> float | None:
        return next((p.skew_s for p in self.probes if p.problem is None), None)


async def run_checkup(mesh: RemoteClient) -> list[Finding]:
    """All findings, in the order of the nodes. Raises a `TiermeshError` when even `mesh` does not answer."""
    report = await mesh.cluster()
    async with open_session() as http:
        visits = await asyncio.gather(
            *(_visit(http, node, mesh.token) for node in report.nodes if node.state != "down")
        )
    gone = [Finding(n.name, "is up", "marked down", causes.down(n.name)) for n in report.nodes if n.state == "down"]
    return [finding for visit in visits for finding in _findings(visit, visits, report)] + gone


async def _visit(http: aiohttp.ClientSession, node: NodeReport, token: str | None) -> _Visit:
    addresses = [urlsplit(url).netloc for url in node.urls]
    probes = tuple(await asyncio.gather(*(probe(http, address, node.id, node.name) for address in addresses)))
    working = next((p.address for p in probes if p.problem is None), None)
    if working is None:
        return _Visit(node, probes)
    try:
        async with RemoteClient(f"http://{working}", token=token, timeout_s=ASK_LIMIT_S) as client:
            return _Visit(node, probes, await client.diagnose(), await client.cluster())
    except TiermeshError as error:
        return _Visit(node, probes, refusal=error)


def _findings(visit: _Visit, visits: Sequence[_Visit], report: ClusterReport) -> Iterator[Finding]:
    yield from _reached(visit.node.name, "answers", HERE, None, visit.probes)
    if visit.refusal is not None:
        yield _refused(visit.node.name, visit.refusal)
    yield _version(visit, max((v.node.version for v in visits), key=_version_key))
    if (skew := _skew(visit, visits, report)) is not None:
        yield skew
    if visit.cluster is not None:
        yield _agreement(visit, report)
    if visit.diagnosis is not None:
        yield from _engines(visit.node.name, visit.diagnosis)
        for peer in visit.diagnosis.peers:
            yield from _pair(visit.node, peer)


def _pair(node: NodeReport, peer: PeerProbes) -> Iterator[Finding]:
    yield from _reached(peer.name, f"is reached by {node.name}", node.name, node.id, tuple(peer.probes))


def _reached(target: str, check: str, asker: str, asker_id: str | None, probes: Sequence[Probe]) -> Iterator[Finding]:
    """One finding an address."""
    if not probes:
        yield Finding(target, check, "it announces no address", causes.down(target))
    works = any(one.problem is None for one in probes)
    for one in probes:
        if one.problem is None:
            yield Finding(target, f"{check} at {one.address}", f"{one.latency_ms:.1f} ms")
            continue
        advice = causes.of_probe(one, asker=asker, target=target, asker_id=asker_id, otherwise_reached=works)
        yield Finding(target, f"{check} at {one.address}", one.detail or one.problem, advice)


def _refused(name: str, error: TiermeshError) -> Finding:
    if isinstance(error, Unauthenticated):
        return Finding(name, "accepts the token", str(error), causes.token(name))
    return Finding(
        name, "tests itself", str(error), Advice("its daemon failed while testing", f"look at the log of {name}")
    )


def _version(visit: _Visit, newest: str) -> Finding:
    has = visit.node.version
    advice = None if has == newest else causes.version(visit.node.name, has, newest)
    return Finding(visit.node.name, "runs the mesh's version", has, advice)


def _skew(visit: _Visit, visits: Sequence[_Visit], report: ClusterReport) -> Finding | None:
    """Against the coordinator's clock, or the asked node's; this machine's own may be the wrong one."""
    reference = report.coordinator.id if report.coordinator else report.self
    other = next((v for v in visits if v.node.id == reference), None)
    if other is None or other is visit or other.skew_s is None or visit.skew_s is None:
        return None
    apart_s = visit.skew_s - other.skew_s
    detail = f"{abs(apart_s):.2f} s {'ahead of' if apart_s > 0 else 'behind'} {other.node.name}"
    advice = None if abs(apart_s) <= SKEW_LIMIT_S else causes.clock(visit.node.name)
    return Finding(visit.node.name, "keeps the time", detail, advice)


def _agreement(visit: _Visit, report: ClusterReport) -> Finding:
    assert visit.cluster is not None
    theirs = visit.cluster.coordinator
    agrees = report.coordinator is not None and theirs is not None and theirs.id == report.coordinator.id
    detail = theirs.name if theirs else "nobody"
    return Finding(
        visit.node.name, "follows the coordinator", detail, None if agrees else causes.disagreement(visit.node.name)
    )


def _engines(name: str, diagnosis: DiagnoseReport) -> Iterator[Finding]:
    for trial in diagnosis.engines:
        check = f"engine {trial.engine} says one token" + (f" of {trial.model}" if trial.model else "")
        if trial.problem is None:
            yield Finding(name, check, f"{trial.latency_ms or 0:.0f} ms")
        else:
            yield Finding(name, check, trial.problem, causes.engine(name, trial.engine))


def _version_key(version: str) -> tuple[tuple[int, str], ...]:
    """Numbers compare as numbers: 0.10 is newer than 0.9."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in version.split("."))
