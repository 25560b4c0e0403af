"""What `/metrics` tells of the mesh as this node sees it: read when it is asked for, never kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tiermesh.core.breaker import BreakerState
from tiermesh.core.offers import CandidateKey
from tiermesh.types import Load, NodeId, View

BREAKER_VALUES: Mapping[BreakerState, int] = {"closed": 0, "half_open": 1, "open": 2}


class MeshGauges(Collector):
    """View, uplink, elections, load, queues and breakers.

    What there is of each node is labelled by its id as well: two machines may have one name, and Prometheus takes no
    two series with equal labels.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        me: NodeId,
        view: Callable[[], View],
        load: Callable[[], Load],
        waiting: Callable[[], Mapping[str, int]],
        breakers: Callable[[], Mapping[CandidateKey, BreakerState]],
    ) -> None:
        self._me = me
        self._view = view
        self._load = load
        self._waiting = waiting
        self._breakers = breakers
        self._coordinator: NodeId | None = None
        self._elections = Counter(
            "tiermesh_coordinator_changes", "How often this node got another coordinator.", registry=registry
        )
        registry.register(self)

    def view_changed(self, view: View) -> None:
        """Count changes of the coordinator; times without one are not counted."""
        if view.coordinator is not None and view.coordinator != self._coordinator:
            self._coordinator = view.coordinator
            self._elections.inc()

    def describe(self) -> Iterable[Metric]:
        """Nothing is collected when the registry checks names: the daemon is not put together yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All of it, now."""
        view = self._view()
        own = view.members.get(self._me)
        yield GaugeMetricFamily("tiermesh_view_version", "Version of the view, within its ballot.", view.version)
        yield GaugeMetricFamily("tiermesh_term", "Term of the ballot that this node obeys.", view.ballot.term)
        yield GaugeMetricFamily(
            "tiermesh_coordinator", "1 on the coordinator, else 0.", float(view.coordinator == self._me)
        )
        yield GaugeMetricFamily("tiermesh_led", "1 while there is a coordinator.", float(view.coordinator is not None))
        yield self._members(view)
        yield from _scores(view)
        if own is not None and own.status.latency_ms is not None:
            yield GaugeMetricFamily(
                "tiermesh_uplink_seconds", "Round trip to the coordinator.", own.status.latency_ms / 1000
            )
        load = self._load()
        for name, about, value in (
            ("active", "Requests that this node's engines are working on.", load.active),
            ("slots", "As many as they can work on at once.", load.slots),
            ("queued", "Requests that wait in them.", load.queued),
        ):
            yield GaugeMetricFamily(f"tiermesh_engine_{name}", about, value)
        yield from self._gateway(view)

    def _members(self, view: View) -> Metric:
        family = GaugeMetricFamily("tiermesh_members", "Nodes of the mesh.", labels=("state",))
        states = [m.state if m.state != "up" else m.status.state for m in view.members.values()]
        for state in ("up", "draining", "down"):
            family.add_metric((state,), states.count(state))
        return family

    def _gateway(self, view: View) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("tiermesh_waiting", "Requests that wait for a slot or a node.", labels=("model",))
        for model, count in self._waiting().items():
            waiting.add_metric((model,), count)
        yield waiting
        breakers = GaugeMetricFamily(
            "tiermesh_breaker", "0 closed, 1 half-open, 2 open.", labels=("engine", "model", "node", "node_id")
        )
        for (node, engine, model), state in self._breakers().items():
            member = view.members.get(node)
            name = member.status.name if member is not None else node
            breakers.add_metric((engine, model, name, node), BREAKER_VALUES[state])
        yield breakers


def _scores(view: View) -> Iterator[Metric]:
    scores = GaugeMetricFamily(
        "tiermesh_health_score", "0 to 100; 80 is healthy, 60 degraded.", labels=("node", "node_id")
    )
    for member in view.members.values():
        if member.state != "down" and member.status.health.score is not None:
            scores.add_metric((member.status.name, member.id), member.status.health.score)
    yield scores
