"""The gateway carries a request to whoever can answer it: it executes a Route.

Candidates are tried in the route's order, each at most once, within the request's deadline, until one has answered:

- an answer that is not streamed counts when its body is whole and is JSON; a stream counts from its first event;
- 400, 413, 422 and other verdicts on the request itself are the caller's and are never tried elsewhere;
- everything else (no connection, 404, 429, 5xx, a broken or unreadable answer, no first token in time, a node that the
  view marks down in the meantime) is a reason to ask the next candidate, and the caller never hears of it;
- where all slots are taken, or all who have the model are down, the request waits in a queue.

A stream that has begun and breaks, stalls, or whose node goes down, goes on at another candidate with the same weights,
from the tokens so far (`resume`). Where it can't, reading it raises, and whoever writes to the client ends it with an
error event. Leaving the context stops the work, wherever it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from msgspec.structs import replace

from tiermesh.adapters.engines import Engine
from tiermesh.adapters.peers import Peers
from tiermesh.core.routing import Candidate, Refusal, Route, RouteRequest, assessed
from tiermesh.daemon.affinity import Affinity, Prefix
from tiermesh.daemon.ask import REQUEST_TIMEOUT_S, Answer, Ask, Caller, Priority, Task
from tiermesh.daemon.dispatch import DOWN_GRACE_S, Dispatch
from tiermesh.daemon.errand import SILENCE_S, Errand
from tiermesh.daemon.metrics import Record, RequestLog, outcome_of, outcome_of_status
from tiermesh.errors import Unavailable, UnknownModel
from tiermesh.types import NodeId, View

__all__ = ["REQUEST_TIMEOUT_S", "Answer", "Ask", "Caller", "Gateway", "Priority", "Task"]


class Gateway:
    """The front of it. All methods are called on the daemon's loop."""

    def __init__(
        self,
        *,
        me: NodeId,
        engines: Callable[[], Mapping[str, Engine]],
        view: Callable[[], View],
        peers: Peers,
        log: RequestLog | None = None,
        silence_s: float = SILENCE_S,
        down_grace_s: float = DOWN_GRACE_S,
        on_elsewhere: Callable[[str, NodeId], None] = lambda _, __: None,
    ) -> None:
        """`on_elsewhere` hears which model of another node has answered."""
        self.dispatch = Dispatch(me=me, engines=engines, view=view, peers=peers, down_grace_s=down_grace_s)
        self._log = RequestLog() if log is None else log
        self._silence_s = silence_s
        self._affinity = Affinity()
        self._me = me
        self._on_elsewhere = on_elsewhere

    def view_changed(self, view: View) -> None:
        """Heed what the new view says of those that are asked now."""
        self.dispatch.view_changed(view)

    def plan(self, request: RouteRequest) -> Route:
        """The route that a request would take now. Raises `UnknownModel` or `Unavailable`."""
        plan = self.dispatch.plan(request)
        if isinstance(plan, Refusal):
            if plan.kind == "unknown":
                raise UnknownModel(plan.message, param="model")
            raise Unavailable(plan.message, retry_after_s=plan.retry_after_s or 1.0)
        return plan

    def explain(self, request: RouteRequest, body: Mapping[str, object]) -> tuple[RouteRequest, Route | Refusal]:
        """What a chat of `body` would want now, with its complexity where that is used, and its route."""
        request = assessed(request, body, self.dispatch.routing)
        prefix = self._affinity.look(request.model, body.get("messages"))
        return request, self.dispatch.plan(request, prefix.node)

    def chat(self, ask: Ask) -> AbstractAsyncContextManager[Answer]:
        """A context, to be entered at once, in which the first candidate that can answers `ask`. Leaving it stops the
        work, wherever it is done.

        Entering raises `UnknownModel`, `Unavailable`, `EngineFailed` (all candidates failed), `PoisonedRequest` or
        `DeadlineExceeded`; reading `Answer.events` may raise the last four.
        """
        prefix = self._affinity.look(ask.route.model, ask.body.get("messages"))
        route = assessed(ask.route, ask.body, self.dispatch.routing)
        if route is not ask.route:
            ask = replace(ask, route=route)
        record = self._log.begin(ask.caller.api)
        errand = Errand(ask, self.dispatch, record, preferred=prefix.node, silence_s=self._silence_s)
        return _Chat(errand, record, self._affinity, prefix, self)

    def answered(self, candidate: Candidate) -> None:
        """A request has got its answer, or the beginning of it, from there."""
        if candidate.node != self._me:
            self._on_elsewhere(candidate.model.name, candidate.node)


class _Chat:
    """The context of `Gateway.chat`. A plain class, since every prompt passes here and a generator costs it more."""

    __slots__ = ("_affinity", "_answer", "_errand", "_gateway", "_prefix", "_record")

    def __init__(self, errand: Errand, record: Record, affinity: Affinity, prefix: Prefix, gateway: Gateway) -> None:
        self._errand = errand
        self._record = record
        self._affinity = affinity
        self._prefix = prefix
        self._gateway = gateway
        self._answer: Answer | None = None

    async def __aenter__(self) -> Answer:
        try:
            answer = self._answer = await self._errand.run()
        except BaseException as error:
            await self.__aexit__(type(error), error, None)
            raise
        self._affinity.note(self._prefix, answer.candidate.node)
        self._gateway.answered(answer.candidate)
        return answer

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._answer is not None:
            self._record.end(outcome_of_status(self._answer.status), self._errand.usage)
        try:
            await self._errand.close()
        finally:
            if error is not None:
                self._record.end(outcome_of(error))
