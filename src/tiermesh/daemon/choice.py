"""Who is asked next for one request: each candidate at most once, but for those who only said when to come back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from tiermesh.core.routing import AUTO, Candidate, CandidateKey, Refusal, RouteRequest, bare_name
from tiermesh.daemon.dispatch import Dispatch
from tiermesh.daemon.resume import Way
from tiermesh.daemon.waiting import Wish
from tiermesh.errors import EngineFailed, PoisonedRequest, TiermeshError, Unavailable, UnknownModel, WorkerDied
from tiermesh.types import Model, NodeId

MAX_DEATHS = 2
"""One worker may die by chance while it computes an answer. After a second one it is the request, and no third is
risked."""


LEAST_PAUSE_S = 0.05
"""Before somebody who was busy is asked again, even if it says that it will be free at once."""


class Choice:
    """Of one request. `now` gives the loop's time; `may_switch`: the request allows another model."""

    def __init__(
        self,
        dispatch: Dispatch,
        request: RouteRequest,
        *,
        now: Callable[[], float],
        may_switch: bool,
        preferred: NodeId | None,
    ) -> None:
        self._dispatch = dispatch
        self._request = request
        self._now = now
        self._may_switch = may_switch
        self._preferred = preferred
        self._failures: list[tuple[Candidate, TiermeshError]] = []
        self._gone: set[CandidateKey] = set()
        """Who failed."""
        self._spoke: set[CandidateKey] = set()
        """Of them, those who broke off after they had said something new: they may be asked once more."""
        self._back_at: dict[CandidateKey, float] = {}
        """Who is busy, and when to come back."""

    @property
    def attempts(self) -> int:
        """How many have failed so far."""
        return len(self._failures)

    @property
    def wish(self) -> Wish:
        """What the request waits for, where it has to: requests of one wish have the same candidates."""
        request, tier = self._request, None
        if self._dispatch.routing.fallback_strategy == "strict":
            tier = request.tier if request.tier is not None or request.complexity is None else request.complexity.tier
        return Wish(bare_name(request.model), tier, self._may_switch)

    def check(self) -> None:
        """Raises `UnknownModel` for a model that nobody has, up or not."""
        route = self._dispatch.plan(self._request)
        if isinstance(route, Refusal) and route.kind == "unknown":
            raise UnknownModel(route.message, param="model")

    def first(self, without: CandidateKey | None = None) -> Candidate | None:
        """Whom to ask now. Planned anew each time: a lot may have happened."""
        for request in self._wishes():
            route = self._dispatch.plan(request, self._preferred)
            if not isinstance(route, Refusal):
                candidate = self._dispatch.free(route, self._excluded(without))
                if candidate is not None:
                    return candidate
        return None

    def next(self, way: Way, model: Model, without: CandidateKey | None = None) -> Candidate | None:
        """Who can go on with a stream of `model`. Slots don't matter: what has begun goes before what waits."""
        route = self._dispatch.plan(self._successors(way, model))
        if isinstance(route, Refusal):
            return None
        able = [c for c in route.candidates if _able(c, way, model)]
        excluded = self._excluded(without)
        fresh = next((c for c in able if c.key not in excluded), None)
        return fresh or next((c for c in able if c.key in self._spoke and c.key != without), None)

    def has_hope(self) -> bool:
        """May somebody be there later: one who is busy, or said when to come back, or whose node is down?"""
        return any(self._may_come(request) for request in self._wishes())

    def has_hope_for(self, ways: Collection[Way], model: Model) -> bool:
        """The same for a stream of this model that has begun, and can go on in these ways."""
        return any(self._may_succeed(way, model) for way in ways)

    def failed(self, candidate: Candidate, error: TiermeshError, *, spoke: bool) -> None:
        """It did not answer, or broke off. Raises `PoisonedRequest` when the request is to blame."""
        self._failures.append((candidate, error))
        self._spoke.discard(candidate.key)
        if isinstance(error, Unavailable):
            self._back_at[candidate.key] = self._now() + max(LEAST_PAUSE_S, error.retry_after_s)
        else:
            self._gone.add(candidate.key)
            if spoke:
                self._spoke.add(candidate.key)
        deaths = [dead for dead, why in self._failures if isinstance(why, WorkerDied)]
        if len(deaths) >= MAX_DEATHS:
            names = " and ".join(dead.node_name for dead in deaths)
            raise PoisonedRequest(
                f"the workers of {names} died while they computed this request; no other one is risked"
            )

    def verdict(self) -> TiermeshError:
        """Why nobody has answered. A busy one makes it worth trying again."""
        if not self._failures:
            route = self._dispatch.plan(self._request)
            if isinstance(route, Refusal):
                return Unavailable(route.message, retry_after_s=route.retry_after_s or 1.0)
            return Unavailable("every slot is taken, and none became free in time (limits.queue_timeout_s)")
        told = "; ".join(dict.fromkeys(f"{candidate.node_name}: {error}" for candidate, error in self._failures))
        message = f"no candidate could answer ({told})"
        waits = [error.retry_after_s for _, error in self._failures if isinstance(error, Unavailable)]
        return Unavailable(message, retry_after_s=min(waits)) if waits else EngineFailed(message)

    def _wishes(self) -> Iterator[RouteRequest]:
        """The route asked for, then any model, where the request allows one."""
        yield self._request
        if self._may_switch:
            yield RouteRequest(AUTO, self._request.tier)

    def _may_come(self, request: RouteRequest) -> bool:
        route = self._dispatch.plan(request)
        if isinstance(route, Refusal):
            return self._dispatch.hopeful(request, lambda c: c.key not in self._gone)
        return any(c.key not in self._gone for c in (*route.candidates, *route.left_out))

    def _may_succeed(self, way: Way, model: Model) -> bool:
        def fits(candidate: Candidate) -> bool:
            return candidate.key not in self._gone and _able(candidate, way, model)

        return self._dispatch.hopeful(self._successors(way, model), fits)

    def _successors(self, way: Way, model: Model) -> RouteRequest:
        """Among whose candidates there may be somebody who goes on with a stream of `model`."""
        return RouteRequest(AUTO, self._request.tier) if way == "text" else RouteRequest(model.name)

    def _excluded(self, without: CandidateKey | None) -> set[CandidateKey]:
        excluded = self._gone if without is None else self._gone | {without}
        if not self._back_at:
            return excluded
        now = self._now()
        return excluded | {key for key, back_at in self._back_at.items() if now < back_at}


def _able(candidate: Candidate, way: Way, model: Model) -> bool:
    """Can it go on with a stream of `model` in this way?"""
    other = candidate.model
    return way in ("anew", "text") or (other.can_continue and other.digest == model.digest)
