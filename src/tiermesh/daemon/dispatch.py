"""Who is asked next, and the way there: routes, reservations, the queue, and what every candidate's conduct was.

A candidate is reserved before it is asked, in the same breath in which it was chosen, so that two requests never take
one slot. Reservations of this node count in its own load until its engine counts them itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from tiermesh.adapters.engines import Engine, Reply
from tiermesh.adapters.peer_requests import EMBED_PATH, GENERATE_PATH
from tiermesh.adapters.peers import Peers
from tiermesh.config import PolicyDocument
from tiermesh.core.routing import Candidate, CandidateKey, Fact, Refusal, Route, Router, RouteRequest, RoutingPolicy
from tiermesh.daemon.ask import Ask
from tiermesh.daemon.attempt import Attempt
from tiermesh.daemon.conduct import Conduct
from tiermesh.daemon.loads import Loads
from tiermesh.daemon.waiting import Waiting
from tiermesh.errors import EngineFailed, InvalidConfig, TiermeshError, Unavailable
from tiermesh.types import NodeId, Policy, View

log = logging.getLogger(__name__)

DOWN_GRACE_S = 2.0
"""A running stream whose node is marked down may go on if it says something within this time: views can be wrong."""


class Trial:
    """One candidate, reserved for one request since `since`. `close` ends all that it began."""

    __slots__ = (
        "_dispatch",
        "_question",
        "attempt",
        "begun_at",
        "begun_with",
        "candidate",
        "judged",
        "key",
        "sent",
        "since",
        "source",
    )

    def __init__(
        self, dispatch: Dispatch, candidate: Candidate, key: CandidateKey, attempt: Attempt, since: float
    ) -> None:
        self.candidate = candidate
        self.key = key
        self.attempt = attempt
        self.since = since
        self.sent = False
        self.judged = False
        self.source: AsyncGenerator[bytes, None] | None = None
        """The rest of a stream that has begun."""
        self.begun_at = self.since
        self.begun_with = 0
        """Token ids that the client had when this one began."""
        self._question: AbstractAsyncContextManager[Reply] | None = None
        self._dispatch: Dispatch | None = dispatch

    async def ask(self, question: AbstractAsyncContextManager[Reply]) -> Reply:
        """The head of the candidate's answer; `close` leaves the context."""
        reply = await question.__aenter__()
        self._question = question
        return reply

    async def close(self) -> None:
        """Stop the work there and free the slot. May be called twice."""
        question, self._question = self._question, None
        try:
            if self.source is not None:
                await self.source.aclose()
        finally:
            try:
                if question is not None:
                    await question.__aexit__(None, None, None)
            finally:
                self.release()

    def release(self) -> None:
        """Free the slot. May be called twice."""
        dispatch, self._dispatch = self._dispatch, None
        if dispatch is not None:
            self.attempt.close()
            dispatch.released(self)


class Dispatch:
    """Owner of in-flight counts, breakers and the queue. All methods are called on the daemon's loop."""

    def __init__(
        self,
        *,
        me: NodeId,
        engines: Callable[[], Mapping[str, Engine]],
        view: Callable[[], View],
        peers: Peers,
        down_grace_s: float = DOWN_GRACE_S,
    ) -> None:
        self.conduct = Conduct()
        self.waiting: Waiting[Trial] = Waiting(lambda trial: trial.release())
        self.attempts: set[Attempt] = set()
        self._me = me
        self._engines = engines
        self._view = view
        self._peers = peers
        self._down_grace_s = down_grace_s
        self._router = Router(me)
        self._loads = Loads()
        self._reserved_here = 0
        self._policy = (Policy(), PolicyDocument())
        self._routing = RoutingPolicy()
        self._loop = asyncio.get_running_loop()

    @property
    def policy(self) -> PolicyDocument:
        """What holds now; defaults where it can't be read."""
        policy = self._view().policy
        if policy is not self._policy[0]:
            document = _document(policy)
            self._policy, self._routing = (policy, document), document.routing.policy()
            self.conduct.set_rule(document.routing.breaker.rule())
        return self._policy[1]

    @property
    def routing(self) -> RoutingPolicy:
        """The part of it that routing reads."""
        assert self.policy
        return self._routing

    def view_changed(self, view: View) -> None:
        """Give up on pending candidates whose node went down; correct what is known of everybody's load."""
        self._loads.view_changed(view)
        self.conduct.view_changed(view)
        for attempt in self.attempts:
            member = view.members.get(attempt.node)
            if attempt.node != self._me and member is not None and member.state == "down":
                attempt.node_went_down()
        self.waiting.poke()

    def plan(self, request: RouteRequest, preferred: NodeId | None = None) -> Route | Refusal:
        """The route that a request would take now."""
        view, active = self._view(), self._reserved_here
        for engine in self._engines().values():
            load = engine.load
            active += load.active + load.queued
        estimate = self._loads.estimate(view)
        estimate[self._me] = active
        return self._router.plan(view, request, self.routing, active=estimate, facts=self.facts(), preferred=preferred)

    def facts(self) -> Mapping[CandidateKey, Fact]:
        """What this node has measured of every candidate that it has asked."""
        return self.conduct.facts(self._loop.time())

    def hopeful(self, request: RouteRequest, fits: Callable[[Candidate], bool]) -> bool:
        """Would there be somebody who fits, if all nodes that are known were up and all breakers closed?"""
        view = self._view()
        members = {
            node: replace(member, state="up", down_since=None, status=replace(member.status, state="up"))
            for node, member in view.members.items()
        }
        plan = Router(self._me).plan(replace(view, members=members), request, self.routing)
        return isinstance(plan, Route) and any(map(fits, plan.candidates))

    def reserve(self, candidate: Candidate, deadline: float) -> Trial:
        """Take a slot of it."""
        key, now = candidate.key, self._loop.time()
        attempt = Attempt(candidate.node, deadline=deadline, grace_s=self._down_grace_s)
        self.attempts.add(attempt)
        self._loads.in_flight[candidate.node] += 1
        self._reserved_here += candidate.local
        self.conduct.started(key, now)
        return Trial(self, candidate, key, attempt, now)

    def released(self, trial: Trial) -> None:
        """Give a slot back."""
        self.attempts.discard(trial.attempt)
        self._loads.in_flight[trial.candidate.node] -= 1
        if not trial.sent:
            self._reserved_here -= trial.candidate.local
        if not trial.judged:
            self.conduct.abandoned(trial.key, self._loop.time())
        self.waiting.poke()

    def began(self, trial: Trial, *, timed: bool) -> None:
        """The candidate has answered, or begun to. `timed`: how long it took says how fast it is."""
        now = self._loop.time()
        trial.judged = True
        self.conduct.began(trial.key, now, now - trial.since if timed else None)

    def failed(self, trial: Trial, error: TiermeshError) -> None:
        """The candidate has not answered, or broke off."""
        now, key = self._loop.time(), trial.key
        if trial.judged:
            self.conduct.broke(key, now)
        else:
            trial.judged = True
            self.conduct.failed(key, now, error.retry_after_s if isinstance(error, Unavailable) else None)

    def question(
        self, trial: Trial, body: Mapping[str, object], ask: Ask, deadline: float
    ) -> AbstractAsyncContextManager[Reply]:
        """What has the candidate answer `body`, for `Trial.ask` at once. Both raise `EngineFailed` or `Unavailable`."""
        candidate = trial.candidate
        if candidate.local:
            engine = self._engines().get(candidate.model.engine)
            if engine is None:
                raise EngineFailed(f"engine {candidate.model.engine} is gone")
            # Between this line and the engine's own count nothing else runs.
            self._reserved_here -= 1
            trial.sent = True
            return engine.chat(body) if ask.task == "chat" else engine.embed(body)
        trial.sent = True
        return self._peers.generate(
            candidate.node,
            self._view().members[candidate.node].status.addresses,
            {**body, "engine": candidate.model.engine},
            path=GENERATE_PATH if ask.task == "chat" else EMBED_PATH,
            request_id=ask.request_id,
            deadline_s=deadline - self._loop.time(),
        )

    def is_loading(self, candidate: Candidate) -> bool:
        """Does its node say that the model is not in memory yet?"""
        member = self._view().members.get(candidate.node)
        models = member.status.models if member is not None else ()
        return any(
            model.state != "warm" and model.name == candidate.model.name and model.engine == candidate.model.engine
            for model in models
        )

    def waits_itself(self, candidate: Candidate) -> bool:
        """Has its engine a queue of its own, and nobody said how many requests it takes at once?"""
        member, name = self._view().members.get(candidate.node), candidate.model.engine
        for engine in member.status.engines if member is not None else ():
            if engine.name == name and engine.slots_unknown:
                return True
        return False

    def free(self, route: Route, excluded: Collection[CandidateKey]) -> Candidate | None:
        """The best candidate that may be asked now."""
        for candidate in route.candidates:
            if excluded and candidate.key in excluded:
                continue
            if not candidate.full or self.waits_itself(candidate):
                return candidate
        return None


def _document(policy: Policy) -> PolicyDocument:
    try:
        return PolicyDocument.from_body(policy.body)
    except InvalidConfig as error:
        log.warning("policy %s.%s can't be read, defaults hold: %s", policy.ballot.term, policy.version, error)
        return PolicyDocument()
