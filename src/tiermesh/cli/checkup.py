"""`mesh cluster test`: every node proved end to end, from here and by one another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from tiermesh.adapters.probe import Prober
from tiermesh.cli import causes
from tiermesh.cli.causes import Advice
from tiermesh.cli.render import node_labels
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
    """One check of one node; `advice` exactly when it failed. `asker` is the other node that checked, if one did."""

    node: str
    check: str
    detail: str
    advice: Advice | None = None
    asker: str | None = None

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
    """All findings, node after node. Raises a `TiermeshError` when even `mesh` does not answer."""
    report = await mesh.cluster()
    async with Prober() as prober:
        alive = [node for node in report.nodes if node.state != "down"]
        visits = await asyncio.gather(*(_visit(prober, node, mesh.token) for node in alive))
    return _Judge(report, visits).findings()


async def _visit(prober: Prober, node: NodeReport, token: str | None) -> _Visit:
    addresses = [urlsplit(url).netloc for url in node.urls]
    probes = tuple(await asyncio.gather(*(prober.ask(address, node.id, node.name) for address in addresses)))
    working = next((p.address for p in probes if p.problem is None), None)
    if working is None:
        return _Visit(node, probes)
    try:
        async with RemoteClient(f"http://{working}", token=token, timeout_s=ASK_LIMIT_S) as client:
            return _Visit(node, probes, await client.diagnose(), await client.cluster())
    except TiermeshError as error:
        return _Visit(node, probes, refusal=error)


class _Judge:
    """From what was seen to findings. Pure."""

    def __init__(self, report: ClusterReport, visits: Sequence[_Visit]) -> None:
        self._report = report
        self._visits = visits
        self._labels = node_labels(report)
        self._newest = max((v.node.version for v in visits), key=_version_key, default="")

    def findings(self) -> list[Finding]:
        found = [finding for visit in self._visits for finding in self._of(visit)]
        for node in self._report.nodes:
            if node.state == "down":
                label = self._labels[node.id]
                found.append(Finding(label, "is up", "marked down", causes.down(label)))
        order = list(self._labels.values())
        return sorted(found, key=lambda finding: (order.index(finding.node), finding.asker is not None))

    def _of(self, visit: _Visit) -> Iterator[Finding]:
        label = self._labels[visit.node.id]
        yield from _reached(label, "answers", HERE, None, visit.probes)
        if visit.refusal is not None:
            yield _refused(label, visit.refusal)
        advice = None if visit.node.version == self._newest else causes.version(label, visit.node.version, self._newest)
        yield Finding(label, "runs the mesh's version", visit.node.version, advice)
        yield from self._time(label, visit)
        if visit.cluster is not None:
            yield self._agreement(label, visit.cluster)
        if visit.diagnosis is not None:
            yield from _engines(label, visit.diagnosis)
            for peer in visit.diagnosis.peers:
                yield from self._pair(visit.node, peer)

    def _time(self, label: str, visit: _Visit) -> Iterator[Finding]:
        """Against the coordinator's clock, or the asked node's; this machine's own may be the wrong one."""
        reference = self._report.coordinator.id if self._report.coordinator else self._report.self
        other = next((v for v in self._visits if v.node.id == reference), None)
        if other is None or other is visit or other.skew_s is None or visit.skew_s is None:
            return
        apart_s = visit.skew_s - other.skew_s
        detail = f"{abs(apart_s):.2f} s {'ahead of' if apart_s > 0 else 'behind'} {self._labels[reference]}"
        yield Finding(label, "keeps the time", detail, None if abs(apart_s) <= SKEW_LIMIT_S else causes.clock(label))

    def _agreement(self, label: str, theirs: ClusterReport) -> Finding:
        ours, their = self._report.coordinator, theirs.coordinator
        agrees = ours is not None and their is not None and ours.id == their.id
        advice = None if agrees else causes.disagreement(label)
        return Finding(label, "follows the coordinator", their.name if their else "nobody", advice)

    def _pair(self, node: NodeReport, peer: PeerProbes) -> Iterator[Finding]:
        if peer.id not in self._labels:
            return  # it joined while we looked
        asker, target = self._labels[node.id], self._labels[peer.id]
        for finding in _reached(target, f"is reached by {asker}", asker, node.id, peer.probes):
            yield replace(finding, asker=asker)


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


def _refused(label: str, error: TiermeshError) -> Finding:
    if isinstance(error, Unauthenticated):
        return Finding(label, "accepts the token", str(error), causes.token(label))
    return Finding(label, "tests itself", str(error), causes.silent(label))


def _engines(label: str, diagnosis: DiagnoseReport) -> Iterator[Finding]:
    for trial in diagnosis.engines:
        check = f"engine {trial.engine} says one token" + (f" of {trial.model}" if trial.model else "")
        if trial.problem is None:
            yield Finding(label, check, f"{trial.latency_ms or 0:.0f} ms")
        else:
            yield Finding(label, check, trial.problem, causes.engine(label, trial.engine))


def _version_key(version: str) -> tuple[tuple[int, str], ...]:
    """Numbers compare as numbers: 0.10 is newer than 0.9."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in version.split("."))
