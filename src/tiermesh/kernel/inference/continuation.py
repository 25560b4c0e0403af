"""Where one sequence stands: from logits to its next token, and to what its client hears of it."""

from __future__ import annotations

import torch

from tiermesh.kernel.inference.loading import LoadedModel
from tiermesh.kernel.inference.sampler import Chooser
from tiermesh.kernel.inference.sequence import Choice, Finished, FinishReason, Replayed, Sequence, Text
from tiermesh.kernel.inference.tokens import Detokenizer, StopMatcher


class Continuation:
    """Of one sequence. It is told the logits, token by token, until it is `done`; then `Finished` has been emitted."""

    def __init__(self, sequence: Sequence, model: LoadedModel) -> None:
        self.done = False
        self._sequence = sequence
        self._end_tokens = model.end_tokens
        self._detokenizer = Detokenizer(model.decode)
        self._stops = StopMatcher(sequence.stops)
        self._chooser = Chooser(sequence.sampling, sequence.prompt)
        self._count = 0
        if sequence.resumed:
            self._replay()

    def advance(self, logits_V: torch.Tensor) -> int:
        """Choose the next token from fp32 logits, which are overwritten, and emit its text."""
        position = len(self._sequence.prompt) + self._count
        choice = self._chooser.choose(logits_V, position, self._sequence.grammar)
        if choice.token in self._end_tokens:
            self._count += 1
            self._end("stop", choice)
            return choice.token
        text, stopped = self._feed(choice.token)
        self._sequence.emit(Text(text, (choice,)))
        if stopped:
            self._finish("stop")
        elif self._count == self._sequence.max_tokens:
            self._end("length")
        return choice.token

    def _feed(self, token: int) -> tuple[str, bool]:
        """The text that may be shown with this token, and whether it completed a stop string."""
        self._count += 1
        self._chooser.accept(token)
        if self._sequence.grammar is not None:
            self._sequence.grammar.accept(token)
        return self._stops.feed(self._detokenizer.feed(token))

    def _replay(self) -> None:
        """Bring everything to where it was when these tokens had been chosen one by one."""
        texts = []
        stopped = ended = False
        for token in self._sequence.resumed:
            if token in self._end_tokens:
                self._count += 1
                ended = True
                break
            text, stopped = self._feed(token)
            texts.append(text)
            if stopped:
                break
        self._sequence.emit(Replayed("".join(texts)))
        if stopped:
            self._finish("stop")
        elif ended:
            self._end("stop")
        elif self._count >= self._sequence.max_tokens:
            self._end("length")

    def _end(self, reason: FinishReason, choice: Choice | None = None) -> None:
        """Nothing more comes, so what was held back is shown, unless it completes a stop string."""
        text, stopped = self._stops.feed(self._detokenizer.flush())
        text += self._stops.flush()
        if text:
            self._sequence.emit(Text(text))
        self._finish("stop" if stopped else reason, choice)

    def _finish(self, reason: FinishReason, choice: Choice | None = None) -> None:
        self.done = True
        self._sequence.emit(Finished(reason, self._count, () if choice is None else (choice,)))
