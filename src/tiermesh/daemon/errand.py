"""One request, from its first candidate to its last byte.

Until an answer begins, candidates are tried one after another, and the caller never hears of it. A stream that has
begun goes on elsewhere when it breaks, as `resume.Told` finds possible.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import cached_property, partial

from tiermesh.core.routing import Candidate, CandidateKey
from tiermesh.daemon.ask import Answer, Ask, Task
from tiermesh.daemon.choice import Choice
from tiermesh.daemon.dispatch import Dispatch, Trial
from tiermesh.daemon.metrics import Record, outcome_of, usage_in
from tiermesh.daemon.replies import first_event, read_answer, read_verdict
from tiermesh.daemon.resume import SWITCH, Told, Way
from tiermesh.daemon.sse import whole_events
from tiermesh.daemon.waiting import Wish
from tiermesh.errors import DeadlineExceeded, EngineFailed, TiermeshError, Unavailable
from tiermesh.types import Model, NodeId

log = logging.getLogger(__name__)

SILENCE_S = 120.0
"""Longest silence inside a stream that can't go on elsewhere. Engines that hold back a tool call until it is whole are
silent that long."""

MAX_MOVES = 16
"""Of one stream. More breaks than that are no chance, and each costs reading the prompt again."""

SEED_BITS = 53
"""As large as every JSON reader can hold exactly."""

MEASURED_TOKENS = 8
"""A shorter stream says nothing of speed."""

EVENTS = "text/event-stream"

ANSWER_HOLDS: Mapping[Task, str] = {"chat": "choices", "embeddings": "data"}
"""The list that every whole answer has."""


class Errand:
    """Call `run` once; `close` gives back whatever is still held."""

    def __init__(
        self, ask: Ask, dispatch: Dispatch, record: Record, *, preferred: NodeId | None, silence_s: float
    ) -> None:
        self._ask = ask
        self._dispatch = dispatch
        self._record = record
        self._silence_s = silence_s
        self._loop = asyncio.get_running_loop()
        self._limits = dispatch.policy.limits
        self._deadline = self._loop.time() + ask.timeout_s
        self._may_switch = ask.body.get(SWITCH) is True
        self._choice = Choice(
            dispatch, ask.route, now=self._loop.time, may_switch=self._may_switch, preferred=preferred
        )
        self._events: AsyncGenerator[bytes, None] | None = None
        self._trial: Trial | None = None
        self._moves = 0
        self._waited_s = 0.0
        self._last = b""
        """The whole answer, or the last piece of a stream."""

    @property
    def usage(self) -> Mapping[str, int]:
        """The tokens of what was answered, as far as they can be told."""
        told = usage_in(self._last)
        if self._ask.stream and self._told.ids:
            told.setdefault("completion_tokens", len(self._told.ids))
        return told

    async def run(self) -> Answer:
        """The answer of the first candidate that can give one.

        Raises `UnknownModel`, `Unavailable`, `EngineFailed` (all candidates failed), `PoisonedRequest` or
        `DeadlineExceeded`; reading `Answer.events` may raise the last four.
        """
        if self._may_switch:
            self._choice.check()
        while True:
            trial = await self._reserve()
            if trial is None:
                raise self._choice.verdict()
            try:
                return await self._answer(trial)
            except (EngineFailed, Unavailable) as error:
                await self._failed(trial, error)
            except DeadlineExceeded as error:
                if self._loop.time() - trial.since >= self._dispatch.policy.routing.breaker.slow_first_token_s:
                    self._dispatch.failed(trial, error)  # who has so long nothing to say, has failed
                raise

    async def close(self) -> None:
        """Stop the work, wherever it is done."""
        try:
            if self._events is not None:
                await self._events.aclose()
        finally:
            trial, self._trial = self._trial, None
            if trial is not None:
                await trial.close()

    @cached_property
    def _told(self) -> Told:
        """Of a stream; what comes whole needs none."""
        return Told(self._ask.body, may_switch=self._may_switch)

    @cached_property
    def _seed(self) -> int:
        """Of all that answer, so that what one has begun another can go on with."""
        return secrets.randbits(SEED_BITS)

    async def _reserve(self) -> Trial | None:
        """The next candidate, waited for where there is hope; None: there is nobody left to ask."""
        wish = self._choice.wish
        in_turn = self._choice.attempts > 0 or not self._dispatch.waiting.anybody(wish)
        self._trial = self._ready() if in_turn else None
        if self._trial is None and not self._choice.attempts:
            self._choice.check()
        if self._trial is None and self._choice.has_hope():
            limits, size_bytes = self._limits, self._ask.caller.size_bytes
            apart = self._choice.attempts > 0
            self._trial = await self._wait(wish, self._ready, limits.queue_length, size_bytes, apart=apart)
        return self._trial

    def _ready(self) -> Trial | None:
        candidate = self._choice.first()
        return None if candidate is None else self._dispatch.reserve(candidate, self._deadline)

    async def _wait(
        self, wish: Wish, ready: Callable[[], Trial | None], length: int | None, size_bytes: int, *, apart: bool
    ) -> Trial | None:
        """Stand in the queue for what is left of the time for it."""
        since = self._loop.time()
        left_s = min(self._limits.queue_timeout_s - self._waited_s, self._deadline - since)
        if left_s <= 0:
            return None
        try:
            return await self._dispatch.waiting.turn(
                wish,
                self._ask.caller,
                ready,
                timeout_s=left_s,
                length=length,
                size_bytes=size_bytes,
                apart=apart,
            )
        finally:
            self._waited_s += self._loop.time() - since

    async def _answer(self, trial: Trial) -> Answer:
        """One candidate, until it counts as having answered. Raises `EngineFailed` or `Unavailable`."""
        candidate, key = trial.candidate, trial.key
        loading = candidate.model.state != "warm"
        self._bound(trial, lambda: self._choice.first(without=key) is not None)
        status, content_type, body = await self._heard(trial, "anew")
        streamed = trial.source is not None
        self._dispatch.began(trial, timed=streamed and not loading)
        self._last = body
        if streamed:
            self._begin(trial, "anew")
            self._events = self._stream(trial, body)
        return Answer(
            candidate=candidate,
            status=status,
            content_type=content_type,
            body=b"" if streamed else body,
            events=self._events,
            attempts=self._choice.attempts + 1,
            waited_s=self._waited_s,
            loaded=loading,
            complexity=self._ask.route.complexity,
        )

    async def _heard(self, trial: Trial, way: Way) -> tuple[int, str, bytes]:
        """Status, content type, and the whole body; or the first piece of a stream, and the rest is `trial.source`."""
        ask = self._ask
        self._record.attempt(trial.candidate)
        with trial.attempt:
            body = self._body(trial.candidate, way)
            reply = await trial.ask(self._dispatch.question(trial, body, ask, self._deadline))
            if reply.status != 200:
                return reply.status, reply.content_type, await read_verdict(reply)
            if not ask.stream:
                return 200, "application/json", await read_answer(reply, ANSWER_HOLDS[ask.task])
            if not reply.content_type.startswith(EVENTS):
                raise EngineFailed(f"answered with {reply.content_type} where a stream was asked for")
            trial.source = whole_events(reply.chunks, self._told.choices)
            return 200, EVENTS, await first_event(trial.source)

    def _body(self, candidate: Candidate, way: Way) -> dict[str, object]:
        """What the candidate is asked. A stream that may have to go on elsewhere needs its ids, and a seed to keep."""
        if not self._ask.stream:
            body = {**self._ask.body, "model": candidate.model.name}
            body.pop(SWITCH, None)
            return body
        body = self._told.request(way)
        body["model"] = candidate.model.name
        if candidate.model.can_continue:
            body["return_token_ids"] = True
            if body.get("seed") is None:
                body["seed"] = self._seed
        return body

    # Streams

    async def _stream(self, trial: Trial, first: bytes) -> AsyncGenerator[bytes, None]:
        """All of it, from as many candidates as it takes."""
        told, piece = self._told, first
        try:
            while True:
                try:
                    source, attempt = trial.source, trial.attempt
                    assert source is not None, "a stream has begun"
                    while piece:
                        if out := told.pass_on(piece):
                            if b'"usage"' in out:
                                self._last = out
                            yield out
                        with attempt:
                            piece = await anext(source, b"")
                    self._measure(trial)
                    if missing := told.end():
                        yield missing
                    return
                except (EngineFailed, Unavailable) as error:
                    failure = error
                if told.complete:
                    yield told.end()
                    return
                trial, piece = await self._moved(trial, failure)
        except TiermeshError as error:  # who writes to the client tells it so, and leaves as if all were well
            self._record.end(outcome_of(error), self.usage)
            raise

    async def _moved(self, trial: Trial, failure: TiermeshError) -> tuple[Trial, bytes]:
        """Whoever goes on with the stream, and the first piece from there. Raises `EngineFailed` if nobody can."""
        model = trial.candidate.model
        await self._failed(trial, failure)
        self._moves += 1
        while self._moves <= MAX_MOVES and (found := await self._successor(model)) is not None:
            trial, way = found
            self._bound(trial, partial(self._has_way_on, model, trial.candidate.key))
            try:
                status, _, first = await self._heard(trial, way)
                if status != 200:
                    raise EngineFailed(f"HTTP {status} when asked to go on with a stream: {first[:300]!r}")
            except (EngineFailed, Unavailable) as error:
                await self._failed(trial, error)
                continue
            self._dispatch.began(trial, timed=False)
            self._begin(trial, way)
            log.info("%s goes on at %s", self._ask.request_id, trial.candidate.node_name)
            return trial, first
        raise EngineFailed(f"{failure}, and no other node can go on with this answer")

    async def _successor(self, model: Model) -> tuple[Trial, Way] | None:
        """Reserve whoever can go on, at once or as soon as one is back."""
        ways: list[Way] = []

        def ready() -> Trial | None:
            if (found := self._way_on(model)) is None:
                return None
            ways.append(found[1])
            return self._dispatch.reserve(found[0], self._deadline)

        trial = ready()
        if trial is None and self._choice.has_hope_for(self._told.ways(), model):
            # What has begun is not refused for want of room: it takes hardly any.
            trial = await self._wait(self._choice.wish, ready, None, 0, apart=True)
        self._trial = trial
        return None if trial is None else (trial, ways[-1])

    def _way_on(self, model: Model, without: CandidateKey | None = None) -> tuple[Candidate, Way] | None:
        for way in self._told.ways():
            candidate = self._choice.next(way, model, without)
            if candidate is not None:
                return candidate, way
        return None

    def _has_way_on(self, model: Model, without: CandidateKey) -> bool:
        return self._way_on(model, without) is not None

    def _bound(self, trial: Trial, elsewhere: Callable[[], bool]) -> None:
        """Until the first token: a model that is being loaded is waited for, and so is the last candidate."""
        if self._ask.stream:
            trial.attempt.patience_s = self._limits.first_token_timeout_s
            trial.attempt.gives_up = lambda _: not self._dispatch.is_loading(trial.candidate) and elsewhere()

    def _begin(self, trial: Trial, way: Way) -> None:
        """From the first token on."""
        model, key, attempt = trial.candidate.model, trial.candidate.key, trial.attempt
        self._record.first_token()
        self._told.begin(way, traced=model.can_continue)
        trial.begun_at, trial.begun_with = self._loop.time(), len(self._told.ids)
        attempt.begun = True
        limits = self._limits
        # An engine may send its head long before it has anything to say: then it can be left as before its head.
        patience_s = limits.stall_timeout_s if self._may_move(model) else limits.first_token_timeout_s
        attempt.patience_s = min(patience_s, self._silence_s)
        attempt.gives_up = lambda silent_s: silent_s >= self._silence_s or self._has_way_on(model, key)

    def _may_move(self, model: Model) -> bool:
        return model.can_continue or self._may_switch

    def _measure(self, trial: Trial) -> None:
        """How fast the tokens came, where they can be counted."""
        tokens, took_s = len(self._told.ids) - trial.begun_with, self._loop.time() - trial.begun_at
        if tokens >= MEASURED_TOKENS and took_s > 0:
            self._dispatch.conduct.measured(trial.candidate.key, self._loop.time(), tokens / took_s)

    async def _failed(self, trial: Trial, error: TiermeshError) -> None:
        candidate = trial.candidate
        log.info("%s: %s on %s: %s", self._ask.request_id, candidate.model.name, candidate.node_name, error)
        made = len(self._told.ids) - trial.begun_with if trial.attempt.begun else 0
        self._record.attempt_failed(made)
        self._dispatch.failed(trial, error)
        self._trial = None
        await trial.close()
        self._choice.failed(candidate, error, spoke=made > 0)
