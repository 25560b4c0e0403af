"""Where one sequence stands: from logits to its next token, and to what its client hears of it."""

from __future__ import annotations

import torch

from tiermesh.kernel.inference.loading import LoadedModel
from tiermesh.kernel.inference.sampler import sample
from tiermesh.kernel.inference.sequence import Finished, FinishReason, Sequence, Text
from tiermesh.kernel.inference.tokens import Detokenizer, StopMatcher


class Continuation:
    """A sequence that has been prefilled. It is told the logits, token by token, until it is done."""

    def __init__(self, sequence: Sequence, model: LoadedModel) -> None:
        self._sequence = sequence
        self._end_tokens = model.end_tokens
        self._detokenizer = Detokenizer(model.decode)
        self._stops = StopMatcher(sequence.stops)
        self._count = 0

    def advance(self, logits_V: torch.Tensor) -> int | None:
        """Choose the next token and emit its text. None: that was the last one, and `Finished` has been emitted."""
        position = len(self._sequence.prompt) + self._count
        token = sample(logits_V, self._sequence.sampling, position)
        self._count += 1
        if token in self._end_tokens:
            self._end("stop")
            return None
        text, stopped = self._stops.feed(self._detokenizer.feed(token))
        # The first token is always reported: it is the sign that the model answers.
        if text or self._count == 1:
            self._sequence.emit(Text(text))
        if stopped:
            self._sequence.emit(Finished("stop", self._count))
            return None
        if self._count == self._sequence.max_tokens:
            self._end("length")
            return None
        return token

    def _end(self, reason: FinishReason) -> None:
        """Nothing more comes, so what was held back is shown, unless it completes a stop string."""
        text, stopped = self._stops.feed(self._detokenizer.flush())
        text += self._stops.flush()
        if text:
            self._sequence.emit(Text(text))
        self._sequence.emit(Finished("stop" if stopped else reason, self._count))
