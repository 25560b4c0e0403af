"""The decode loop: one thread that computes a token for every running sequence at a time.

Sequences join at any step and leave at any step. A step is one call of the model over a packed row: the next token of
each that generates, and a piece of the prompts of those that have just come.

`model.generate` is not used: between two tokens there must be a place where a client that left is noticed, where a
stop string ends the answer, and where other sequences join.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

import torch

from tiermesh.errors import Unavailable
from tiermesh.kernel.inference.attention import PackedBatch, Span
from tiermesh.kernel.inference.cache import Cache
from tiermesh.kernel.inference.continuation import Continuation
from tiermesh.kernel.inference.embedding import Embedding
from tiermesh.kernel.inference.loading import LoadedModel
from tiermesh.kernel.inference.lora import Fitted
from tiermesh.kernel.inference.schedule import PREFILL_TOKENS, SHARED_PREFILL_TOKENS, FairShare, share_prefill
from tiermesh.kernel.inference.sequence import Failed, Sequence
from tiermesh.kernel.inference.slots import Slot, Slots

log = logging.getLogger(__name__)

MAX_RUNNING = 16
"""Sequences computed at the same time: more gain little on a CPU, and each waits longer for its tokens."""
MAX_QUEUED = 32
"""Two more batches: whoever comes later is better served by another node, or told to come back."""
MIN_SHARED_TOKENS = 256
"""Shorter equal prompts are cheaper side by side in one step than one computed and then copied by the others in the
next. Measured, 8 answers to one prompt in bf16: 64 tokens take 0.25 s against 0.40 s, 512 take 4.6 s against 0.7 s."""
RETRY_AFTER_S = 5.0
"""About one short answer of the small model on a CPU."""


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """An adapter that comes, or with `fitted` None one that goes."""

    adapter: str
    fitted: Fitted | None
    done: Future[None]


@dataclass(slots=True, eq=False)
class Run:
    """A sequence that has a slot."""

    sequence: Sequence
    slot: Slot
    tokens: list[int]
    continuation: Continuation

    @property
    def computed(self) -> int:
        """How many of its tokens have their keys and values in the slot."""
        return len(self.slot.tokens)

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be chosen; 1 while it generates."""
        return len(self.tokens) - self.computed


class Generator:
    """Owns the model, the cache, and the thread that uses them. All methods may be called from any thread."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._cache = Cache(model.size, model.shapes, model.dtype, model.device)
        self._slots = Slots(model.size.slots)
        self._share = FairShare()
        self._changed = threading.Condition()
        self._queue: deque[Sequence] = deque()
        self._texts: deque[Embedding] = deque()
        self._changes: deque[Change] = deque()
        self._runs: list[Run] = []
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)
        self._closing = False
        self.slots = min(MAX_RUNNING, model.size.slots)
        """Sequences that may run at the same time."""

    def start(self) -> None:
        """Begin; the thread ends with the process, or with `close`."""
        self._thread.start()

    def close(self) -> None:
        """End the thread after the step that it is at. What runs or waits is never answered."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises `Unavailable` when too many wait already."""
        with self._changed:
            if len(self._queue) >= MAX_QUEUED:
                raise Unavailable(f"{MAX_QUEUED} requests wait for this model already", retry_after_s=RETRY_AFTER_S)
            self._queue.append(sequence)
            self._changed.notify()

    def cancel(self, sequence: Sequence) -> None:
        """Nobody wants this any more: it leaves the queue now, or the model after the current token."""
        with self._changed:
            sequence.cancelled = True
            if sequence in self._queue:
                self._queue.remove(sequence)

    def embed(self, tokens: list[int]) -> Future[list[float]]:
        """The text's vector, computed between the steps of others; a cancelled future stops it."""
        with self._changed:
            if len(self._texts) >= MAX_QUEUED:
                raise Unavailable(f"{MAX_QUEUED} texts wait for this model already", retry_after_s=RETRY_AFTER_S)
            text = Embedding(tokens)
            self._texts.append(text)
            self._changed.notify()
        return text.vector

    def install(self, adapter: str, fitted: Fitted) -> Future[None]:
        """Have the model take one more adapter between two steps; the name must be one that no adapter ever had.

        A slot's keys and values are known by it, and outlast the adapter.
        """
        return self._change(Change(adapter, fitted, Future()))

    def remove(self, adapter: str) -> Future[None]:
        """Have the model forget it as soon as no sequence needs it; nobody may submit one for it any more."""
        return self._change(Change(adapter, None, Future()))

    def _change(self, change: Change) -> Future[None]:
        with self._changed:
            self._changes.append(change)
            self._changed.notify()
        return change.done

    @property
    def active(self) -> int:
        """Sequences that are being computed."""
        return len(self._runs)

    @property
    def queued(self) -> int:
        """Sequences that wait."""
        return len(self._queue)

    def _run(self) -> None:
        with torch.inference_mode():
            while True:
                with self._changed:
                    self._changed.wait_for(self._has_work)
                    if self._closing:
                        return
                    changes = self._take_changes()
                    come = self._take_queued()
                for change in changes:
                    self._carry_out(change)
                for sequence in come:
                    self._admit(sequence)
                self._drop_cancelled()
                if self._texts and (not self._runs or self._share.may_prefill):
                    self._embed_piece()
                if self._runs:
                    self._step()

    def _has_work(self) -> bool:
        return bool(self._queue or self._runs or self._texts or self._changes or self._closing)

    def _take_changes(self) -> list[Change]:
        """Those that can be made now: an adapter that somebody uses stays until then."""
        used = {sequence.adapter for sequence in (*self._queue, *(run.sequence for run in self._runs))}
        due = [change for change in self._changes if change.fitted is not None or change.adapter not in used]
        self._changes = deque(change for change in self._changes if change not in due)
        return due

    def _carry_out(self, change: Change) -> None:
        if not change.done.set_running_or_notify_cancel():
            return
        try:
            if change.fitted is None:
                self._model.remove(change.adapter)
            else:
                self._model.install(change.adapter, change.fitted)
        except Exception as error:
            log.exception("the adapter %s can't be changed", change.adapter)
            change.done.set_exception(error)
        else:
            change.done.set_result(None)

    def _take_queued(self) -> list[Sequence]:
        """Those that get a slot now, first come first served; who has the prompt of another waits to copy it."""
        room = min(self.slots - len(self._runs), self._slots.free)
        begun = [run.sequence for run in self._runs if run.remaining > 1]
        come: list[Sequence] = []
        for sequence in self._queue:
            waits = len(sequence.prompt) >= MIN_SHARED_TOKENS and any(map(sequence.begins_like, begun))
            if len(come) < room and not waits:
                come.append(sequence)
                begun.append(sequence)
        for sequence in come:
            self._queue.remove(sequence)
        return come

    def _admit(self, sequence: Sequence) -> None:
        tokens = [*sequence.prompt, *sequence.resumed]
        try:
            continuation = Continuation(sequence, self._model)
        except Exception as error:
            log.exception("a sequence could not begin")
            sequence.emit(Failed(f"the answer could not begin: {type(error).__name__}: {error}"))
            return
        if continuation.done:
            return
        placement = self._slots.take(tokens, sequence.adapter)
        if placement.source is not None:
            self._cache.copy(placement.source.index, placement.slot.index, placement.reused)
        sequence.cached_tokens = min(placement.reused, len(sequence.prompt))
        self._runs.append(Run(sequence, placement.slot, tokens, continuation))

    def _embed_piece(self) -> None:
        """A piece of the first text that waits. Its slot keeps nothing for others."""
        text = self._texts[0]
        if text.slot is None and self._slots.free:
            text.slot = self._slots.take_fresh()
        if text.slot is None:
            return
        started = time.perf_counter()
        over = True
        try:
            if not text.vector.cancelled():
                budget = SHARED_PREFILL_TOKENS if self._runs else PREFILL_TOKENS
                over = text.advance(self._model, self._cache, budget)
        except InvalidStateError:
            pass  # cancelled at the last moment
        except Exception as error:
            log.exception("a text has no vector")
            with contextlib.suppress(InvalidStateError):
                text.vector.set_exception(error)
        if over:
            self._slots.release(text.slot, spoilt=True)
            self._texts.popleft()
        self._share.stepped(time.perf_counter() - started, prefilled=True, generated=bool(self._runs))

    def _drop_cancelled(self) -> None:
        for run in [run for run in self._runs if run.sequence.cancelled]:
            self._leave(run)

    def _leave(self, run: Run, *, spoilt: bool = False) -> None:
        self._runs.remove(run)
        self._slots.release(run.slot, spoilt=spoilt)
        if spoilt:
            self._cache.clear(run.slot.index)

    def _step(self) -> None:
        started = time.perf_counter()
        generating = [run for run in self._runs if run.remaining == 1]
        prompts = self._prefill_shares(shared=bool(generating))
        work = [*((run, 1) for run in generating), *prompts]
        spans = [
            Span(run.slot.index, run.computed, run.tokens[run.computed : run.computed + n], run.sequence.adapter)
            for run, n in work
        ]
        try:
            self._compute(spans, {run.slot.index: run for run, _ in work})
        except Exception as error:
            log.exception("a step failed")
            self._fail([run for run, _ in work], f"the model failed: {type(error).__name__}: {error}")
        self._share.stepped(time.perf_counter() - started, prefilled=bool(prompts), generated=bool(generating))

    def _prefill_shares(self, *, shared: bool) -> list[tuple[Run, int]]:
        """How many tokens of which prompts are computed in this step; `shared` with those who generate."""
        if shared and not self._share.may_prefill:
            return []
        prompts = [run for run in self._runs if run.remaining > 1]
        shares = share_prefill([run.remaining for run in prompts], SHARED_PREFILL_TOKENS if shared else PREFILL_TOKENS)
        return [(run, share) for run, share in zip(prompts, shares, strict=True) if share]

    def _compute(self, spans: list[Span], runs: dict[int, Run]) -> None:
        batch = PackedBatch(spans, self._cache, self._model.device)
        ends = zip(batch.spans, batch.last_tokens(), strict=True)
        due = [(runs[span.slot], end) for span, end in ends if span.length == len(runs[span.slot].tokens)]
        logits_NV = self._model.logits(batch, [end for _, end in due])
        for span in batch.spans:
            runs[span.slot].slot.tokens.extend(span.tokens)
        for (run, _), logits_V in zip(due, logits_NV, strict=True):
            self._advance(run, logits_V)

    def _advance(self, run: Run, logits_V: torch.Tensor) -> None:
        if run.sequence.cancelled:
            return
        try:
            run.tokens.append(run.continuation.advance(logits_V))
        except Exception as error:
            log.exception("a generation failed")
            self._fail([run], f"the model failed: {type(error).__name__}: {error}")
            return
        if run.continuation.done:
            self._leave(run)

    def _fail(self, runs: list[Run], why: str) -> None:
        for run in runs:
            self._leave(run, spoilt=True)
            run.sequence.emit(Failed(why))
