"""The gateway carries a request to whoever can answer it: it executes a Route.

Candidates are tried in the route's order, each at most once, within the request's deadline, until one has answered:

- an answer that is not streamed counts when its body is whole and is JSON; a stream counts from its first event;
- 400, 413, 422 and other verdicts on the request itself are the caller's and are never tried elsewhere;
- everything else (no connection, 404, 429, 5xx, a broken or unreadable answer, a node that the view marks down in
  the meantime) is a reason to ask the next candidate, and the caller never hears of it.

Once a stream has begun it is not moved. If it breaks, stalls, or its node goes down, reading it raises, and whoever
writes to the client ends it with an error event. Leaving the context stops the work, wherever it is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Literal

from tiermesh.adapters.engines import Engine, Reply
from tiermesh.adapters.peers import EMBED_PATH, GENERATE_PATH, Peers
from tiermesh.config import PolicyDocument
from tiermesh.core.routing import Candidate, Refusal, Route, RouteRequest, RoutingPolicy, plan_route
from tiermesh.daemon.attempt import Attempt
from tiermesh.daemon.loads import Loads
from tiermesh.daemon.replies import first_event, read_answer, read_verdict
from tiermesh.daemon.sse import whole_events
from tiermesh.errors import (
    EngineFailed,
    InvalidConfig,
    PoisonedRequest,
    TiermeshError,
    Unavailable,
    UnknownModel,
    WorkerDied,
)
from tiermesh.types import NodeId, Policy, View

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 600.0
"""From question to last byte; what OpenAI's own clients wait. Long answers on slow machines take minutes."""

STALL_S = 120.0
"""Longest silence inside a stream. Engines that hold back a tool call until it is whole are silent that long."""

DOWN_GRACE_S = 2.0
"""A running stream whose node is marked down may go on if it says something within this time: views can be wrong."""


MAX_DEATHS = 2
"""One worker may die by chance while it computes an answer. After a second one it is the request, and no third is
risked."""

Task = Literal["chat", "embeddings"]
ANSWER_HOLDS: Mapping[Task, str] = {"chat": "choices", "embeddings": "data"}
"""The list that every whole answer has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request. `body` is an OpenAI request, for what `task` says, whose `model` the gateway replaces."""

    body: Mapping[str, object]
    route: RouteRequest
    stream: bool
    request_id: str
    task: Task = "chat"
    timeout_s: float = REQUEST_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Answer:
    """What a candidate said. Either `events` (a stream, whole events a piece, read once) or a whole `body`.

    `status` is 200, or the engine's 4xx verdict on the request.
    """

    candidate: Candidate
    status: int
    content_type: str
    body: bytes
    events: AsyncIterator[bytes] | None
    attempts: int


class Gateway:
    """Owner of in-flight counts. All methods are called on the daemon's loop."""

    def __init__(
        self,
        *,
        me: NodeId,
        engines: Callable[[], Mapping[str, Engine]],
        view: Callable[[], View],
        peers: Peers,
        stall_s: float = STALL_S,
        down_grace_s: float = DOWN_GRACE_S,
    ) -> None:
        self._me = me
        self._engines = engines
        self._view = view
        self._peers = peers
        self._stall_s = stall_s
        self._down_grace_s = down_grace_s
        self._attempts: set[Attempt] = set()
        self._loads = Loads()
        self._policy = (Policy(), RoutingPolicy())

    def view_changed(self, view: View) -> None:
        """Give up on pending candidates whose node went down; correct what is known of everybody's load."""
        self._loads.view_changed(view)
        for attempt in self._attempts:
            member = view.members.get(attempt.node)
            if attempt.node != self._me and member is not None and member.state == "down":
                attempt.node_went_down()

    def plan(self, request: RouteRequest) -> Route:
        """The route that a request would take now. Raises `UnknownModel` or `Unavailable`."""
        view = self._view()
        own = sum(engine.load.active + engine.load.queued for engine in self._engines().values())
        active = self._loads.estimate(view) | {self._me: own}
        plan = plan_route(view, request, self._routing_policy(view.policy), me=self._me, active=active)
        if isinstance(plan, Refusal):
            raise UnknownModel(plan.message, param="model") if plan.kind == "unknown" else Unavailable(plan.message)
        return plan

    @asynccontextmanager
    async def chat(self, ask: Ask) -> AsyncIterator[Answer]:
        """Have `ask` answered by the first candidate that can.

        Raises `UnknownModel`, `Unavailable`, `EngineFailed` (all candidates failed), `PoisonedRequest` or
        `DeadlineExceeded`; reading `Answer.events` may raise `EngineFailed` and `DeadlineExceeded`.
        """
        deadline = asyncio.get_running_loop().time() + ask.timeout_s
        failures: list[tuple[Candidate, TiermeshError]] = []
        async with AsyncExitStack() as stack:
            while (candidate := self._next(ask.route, failures)) is not None:
                async with AsyncExitStack() as trial:
                    try:
                        answer = await self._try(candidate, ask, deadline, len(failures) + 1, trial)
                    except (EngineFailed, Unavailable) as error:
                        log.info("%s: %s on %s: %s", ask.request_id, candidate.model.name, candidate.node_name, error)
                        failures.append((candidate, error))
                        _refuse_killer(failures)
                        continue
                    stack.push_async_exit(trial.pop_all())
                yield answer
                return
        raise _verdict(failures)

    def _next(self, request: RouteRequest, failures: list[tuple[Candidate, TiermeshError]]) -> Candidate | None:
        """The best candidate that has not failed. Planned anew each time: a failure may have taken a second or two."""
        failed = {(candidate.node, candidate.model.engine, candidate.model.name) for candidate, _ in failures}
        try:
            candidates = self.plan(request).candidates
        except (UnknownModel, Unavailable):
            if not failures:
                raise
            return None
        return next((c for c in candidates if (c.node, c.model.engine, c.model.name) not in failed), None)

    async def _try(
        self, candidate: Candidate, ask: Ask, deadline: float, attempts: int, stack: AsyncExitStack
    ) -> Answer:
        """One candidate, until it counts as having answered. What must outlive this call is left on `stack`."""
        attempt = stack.enter_context(self._attempt(candidate))
        async with attempt.until(deadline):
            reply = await stack.enter_async_context(self._send(candidate, ask, deadline))
            if reply.status != 200:
                body = await read_verdict(reply)
                return Answer(candidate, reply.status, reply.content_type, body, None, attempts)
            if not ask.stream:
                body = await read_answer(reply, ANSWER_HOLDS[ask.task])
                return Answer(candidate, 200, "application/json", body, None, attempts)
            if not reply.content_type.startswith("text/event-stream"):
                raise EngineFailed(f"answered with {reply.content_type} where a stream was asked for")
            source = whole_events(reply.chunks)
            first = await first_event(source)
        events = self._guarded(attempt, first, source, deadline)
        stack.push_async_callback(source.aclose)
        stack.push_async_callback(events.aclose)
        return Answer(candidate, 200, "text/event-stream", b"", events, attempts)

    def _send(self, candidate: Candidate, ask: Ask, deadline: float) -> AbstractAsyncContextManager[Reply]:
        body = {**ask.body, "model": candidate.model.name}
        if candidate.local:
            engine = self._engines().get(candidate.model.engine)
            if engine is None:
                raise EngineFailed(f"engine {candidate.model.engine} is gone")
            return engine.chat(body) if ask.task == "chat" else engine.embed(body)
        return self._peers.generate(
            candidate.node,
            self._view().members[candidate.node].status.addresses,
            {**body, "engine": candidate.model.engine},
            path=GENERATE_PATH if ask.task == "chat" else EMBED_PATH,
            request_id=ask.request_id,
            deadline_s=deadline - asyncio.get_running_loop().time(),
        )

    async def _guarded(
        self, attempt: Attempt, first: bytes, source: AsyncGenerator[bytes, None], deadline: float
    ) -> AsyncGenerator[bytes, None]:
        """The rest of a stream that has begun: never silent for longer than `stall_s`, nor past the deadline."""
        attempt.begun = True
        yield first
        while True:
            try:
                async with attempt.until(deadline, silence_s=self._stall_s):
                    piece = await anext(source)
            except StopAsyncIteration:
                return
            yield piece

    @contextmanager
    def _attempt(self, candidate: Candidate) -> Iterator[Attempt]:
        attempt = Attempt(candidate.node, self._down_grace_s)
        self._attempts.add(attempt)
        self._loads.in_flight[candidate.node] += 1
        try:
            yield attempt
        finally:
            self._attempts.discard(attempt)
            self._loads.in_flight[candidate.node] -= 1

    def _routing_policy(self, policy: Policy) -> RoutingPolicy:
        if policy is not self._policy[0]:
            self._policy = (policy, _routing_policy(policy))
        return self._policy[1]


def _routing_policy(policy: Policy) -> RoutingPolicy:
    try:
        routing = PolicyDocument.from_body(policy.body).routing
    except InvalidConfig as error:
        log.warning("policy %s.%s can't be read, routing by defaults: %s", policy.ballot.term, policy.version, error)
        return RoutingPolicy()
    return RoutingPolicy(
        prefer_local=routing.prefer_local,
        fallback_strategy=routing.fallback_strategy,
        load_balance=routing.load_balance,
        aliases=routing.aliases,
    )


def _refuse_killer(failures: list[tuple[Candidate, TiermeshError]]) -> None:
    deaths = [candidate for candidate, error in failures if isinstance(error, WorkerDied)]
    if len(deaths) >= MAX_DEATHS:
        names = " and ".join(candidate.node_name for candidate in deaths)
        raise PoisonedRequest(f"the workers of {names} died while they computed this request; no other one is risked")


def _verdict(failures: list[tuple[Candidate, TiermeshError]]) -> TiermeshError:
    """All candidates failed: a busy one makes it worth trying again."""
    told = "; ".join(f"{candidate.node_name}: {error}" for candidate, error in failures)
    message = f"no candidate could answer ({told})"
    waits = [error.retry_after_s for _, error in failures if isinstance(error, Unavailable)]
    return Unavailable(message, retry_after_s=min(waits)) if waits else EngineFailed(message)
