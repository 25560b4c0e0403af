"""The decode loop: one thread, one sequence at a time, and a short queue.

`model.generate` is not used: between two tokens there must be a place where a client that left is noticed, where a
stop string ends the answer, and where other sequences may come to join.
"""

from __future__ import annotations

import logging
import threading
from collections import deque

import torch
from transformers import DynamicCache

from tiermesh.errors import Unavailable
from tiermesh.kernel.inference.continuation import Continuation
from tiermesh.kernel.inference.loading import LoadedModel
from tiermesh.kernel.inference.sequence import Failed, Sequence

log = logging.getLogger(__name__)

SLOTS = 1
"""Sequences computed at the same time."""
MAX_QUEUED = 16
"""At some seconds an answer, whoever comes later is better served by another node, or told to come back."""
RETRY_AFTER_S = 5.0
"""About one short answer of the small model on a CPU."""
PREFILL_TOKENS = 512
"""A prompt is computed in pieces of this size: large enough for full speed, small enough to be left within a second."""


class Generator:
    """Owns the model and the thread that uses it. All methods may be called from any thread."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._changed = threading.Condition()
        self._queue: deque[Sequence] = deque()
        self._running: Sequence | None = None

    def start(self) -> None:
        """Begin; the thread ends with the process."""
        threading.Thread(target=self._run, name="generator", daemon=True).start()

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

    @property
    def active(self) -> int:
        """Sequences that are being computed."""
        return int(self._running is not None)

    @property
    def queued(self) -> int:
        """Sequences that wait."""
        return len(self._queue)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._running = None
                self._changed.wait_for(lambda: self._queue)
                self._running = sequence = self._queue.popleft()
            try:
                with torch.inference_mode():
                    self._generate(sequence)
            except Exception as error:
                log.exception("a generation failed")
                sequence.emit(Failed(f"the model failed: {type(error).__name__}: {error}"))

    def _generate(self, sequence: Sequence) -> None:
        cache = DynamicCache(config=self._model.model.config)
        logits_V = self._prefill(sequence, cache)
        continuation = Continuation(sequence, self._model)
        while logits_V is not None and not sequence.cancelled:
            token = continuation.advance(logits_V)
            logits_V = None if token is None else self._forward([token], cache)

    def _prefill(self, sequence: Sequence, cache: DynamicCache) -> torch.Tensor | None:
        """Compute the prompt; None when the client left meanwhile."""
        logits_V: torch.Tensor | None = None
        for start in range(0, len(sequence.prompt), PREFILL_TOKENS):
            if sequence.cancelled:
                return None
            logits_V = self._forward(sequence.prompt[start : start + PREFILL_TOKENS], cache)
        return logits_V

    def _forward(self, tokens: list[int], cache: DynamicCache) -> torch.Tensor:
        """Extend the cache by these tokens; the logits after the last of them, in fp32."""
        tokens_BT = torch.tensor([tokens], device=self._model.device)
        output = self._model.model(input_ids=tokens_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits_BTV: torch.Tensor = output.logits
        return logits_BTV[0, -1].float()
