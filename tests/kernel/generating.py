"""A generator in this process, asked many things at once or one after the other."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tiermesh.kernel.inference.generation import Generator
from tiermesh.kernel.inference.loading import load
from tiermesh.kernel.inference.precision import Precision
from tiermesh.kernel.inference.sequence import Choice, Event, Failed, Finished, Replayed, Sampling, Text
from tiermesh.kernel.inference.sequence import Sequence as Generation

TOKENS = 40
DEADLINE_S = 60.0
GREEDY = Sampling(temperature=0.0, seed=0)

Request = dict[str, Any]
"""Fields of a sequence; what is not said is greedy, without stops, and `TOKENS` long."""


@dataclass(slots=True)
class Answer:
    """What one sequence emitted."""

    replayed: str = ""
    text: str = ""
    choices: list[Choice] = field(default_factory=list)
    end: Finished | None = None

    @property
    def tokens(self) -> list[int]:
        return [choice.token for choice in self.choices]


@dataclass(frozen=True, slots=True)
class Running:
    """An answer that is generated now."""

    answer: Answer = field(default_factory=Answer)
    events: queue.Queue[Event] = field(default_factory=queue.Queue)

    def until(self, tokens: int) -> None:
        """Wait until it has so many."""
        while len(self.answer.choices) < tokens:
            self._take()

    def whole(self) -> Answer:
        """Wait until it has ended."""
        while self.answer.end is None:
            self._take()
        return self.answer

    def _take(self) -> None:
        answer = self.answer
        match self.events.get(timeout=DEADLINE_S):
            case Replayed(text):
                assert not answer.choices
                answer.replayed = text
            case Text(text, choices):
                answer.text += text
                answer.choices += choices
            case Finished() as end:
                answer.choices += end.choices
                answer.end = end
            case Failed(message):
                pytest.fail(message)


@dataclass(frozen=True, slots=True)
class Engine:
    """Asks a generator, and waits for its answers."""

    generator: Generator

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """All of them at once."""
        pending = [self.submit(request) for request in requests]
        return [running.whole() for running in pending]

    def answer_alone(self, requests: Sequence[Request]) -> list[Answer]:
        """One after the other."""
        return [self.answer([request])[0] for request in requests]

    def submit(self, request: Request) -> Running:
        """One of them, to be read while it is generated."""
        running = Running()
        settings: dict[str, Any] = {"sampling": GREEDY, "max_tokens": TOKENS, "stops": ()} | request
        self.generator.submit(Generation(**settings, emit=running.events.put))
        return running


@contextmanager
def engine(
    folder: Path,
    precision: Precision,
    *,
    memory_bytes: int = 64 << 20,
    adapters: Mapping[str, Path] = MappingProxyType({}),
) -> Iterator[Engine]:
    """A generator of its own, with nothing in its cache."""
    generator = Generator(load(folder, precision=precision, threads=1, memory_bytes=memory_bytes, adapters=adapters))
    generator.start()
    try:
        yield Engine(generator)
    finally:
        generator.close()


def resumed(requests: Sequence[Request], whole: Sequence[Answer], cuts: Sequence[int]) -> list[Request]:
    """The same requests, each with the first tokens of its answer."""
    return [
        request | {"resumed": tuple(answer.tokens[:cut])}
        for request, answer, cut in zip(requests, whole, cuts, strict=True)
    ]


def cuts_of(whole: Sequence[Answer], shift: int = 0) -> list[int]:
    """One place each, all over the answers, never behind the last token."""
    return [(5 * index + shift) % len(answer.tokens) for index, answer in enumerate(whole)]
