"""Sequences come, share the model, and leave; nothing that happens to one of them reaches the others."""

from __future__ import annotations

import dataclasses
import queue
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import torch
from tests import tiny_model

from tiermesh.errors import Unavailable
from tiermesh.kernel.inference.generation import MAX_QUEUED, MAX_RUNNING, Generator
from tiermesh.kernel.inference.loading import LoadedModel, load
from tiermesh.kernel.inference.sequence import Event, Failed, Finished, Grammar, Sampling, Sequence, Text

DEADLINE_S = 60.0
ENDLESS = 3000
GREEDY = Sampling(temperature=0.0, seed=0)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tiny_model.build_folder(tmp_path_factory.mktemp("tiny"))
    return load(folder, threads=1, precision="fp32", memory_bytes=128 << 20)


@pytest.fixture
def generator(loaded: LoadedModel) -> Iterator[Generator]:
    generator = Generator(loaded)
    generator.start()
    try:
        yield generator
    finally:
        generator.close()


class Listener:
    """A sequence and what it has emitted."""

    def __init__(self, prompt: list[int], max_tokens: int, grammar: Grammar | None = None) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.first = threading.Event()
        self.ended = threading.Event()
        self.end: Event | None = None
        self.tokens: list[int] = []
        self.sequence = Sequence(prompt, GREEDY, max_tokens, (), self._hear, grammar=grammar)

    def _hear(self, event: Event) -> None:
        assert not self.ended.is_set(), "nothing comes after the end"
        if isinstance(event, Text):
            self.tokens += [choice.token for choice in event.choices]
            self.first.set()
        if isinstance(event, Finished | Failed):
            self.end = event
            self.ended.set()

    def finished(self) -> Event:
        assert self.ended.wait(DEADLINE_S)
        assert self.end is not None
        return self.end


def prompt_of(number: int, length: int = 20) -> list[int]:
    return [3 + (number * 31 + place * 7) % 390 for place in range(length)]


def started(generator: Generator, number: int, max_tokens: int, **more: Any) -> Listener:
    listener = Listener(prompt_of(number, **more), max_tokens)
    generator.submit(listener.sequence)
    return listener


def eventually(condition: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_who_comes_later_has_a_token_before_the_other_ends(generator: Generator) -> None:
    long = started(generator, 1, ENDLESS)
    assert long.first.wait(DEADLINE_S)
    late = started(generator, 2, 5, length=300)
    assert isinstance(late.finished(), Finished)
    assert not long.ended.is_set()
    generator.cancel(long.sequence)


def test_a_long_prompt_does_not_stall_those_who_generate(generator: Generator) -> None:
    running = started(generator, 1, ENDLESS)
    assert running.first.wait(DEADLINE_S)
    before = len(running.tokens)
    newcomer = started(generator, 2, 1, length=2000)
    newcomer.finished()
    assert len(running.tokens) - before >= 2000 // 128
    generator.cancel(running.sequence)


def test_a_bounded_number_runs_a_bounded_number_waits_and_the_rest_is_refused(generator: Generator) -> None:
    accepted = [started(generator, 0, ENDLESS)]
    eventually(lambda: generator.active == 1)
    accepted += [started(generator, number, ENDLESS) for number in range(1, MAX_RUNNING)]
    eventually(lambda: generator.active == MAX_RUNNING)
    accepted += [started(generator, number, ENDLESS) for number in range(MAX_QUEUED)]
    with pytest.raises(Unavailable, match="wait for this model"):
        started(generator, 99, 1)
    assert (generator.active, generator.queued) == (MAX_RUNNING, MAX_QUEUED)
    for listener in accepted:
        generator.cancel(listener.sequence)
    eventually(lambda: (generator.active, generator.queued) == (0, 0))


def test_equal_prompts_are_computed_once_even_when_they_come_together(generator: Generator) -> None:
    alone = started(generator, 1, 5, length=300)
    alone.finished()
    together = [started(generator, 2, 5, length=300) for _ in range(4)]
    other = started(generator, 3, 5, length=300)
    for listener in (*together, other):
        assert isinstance(listener.finished(), Finished)
    assert [listener.sequence.cached_tokens for listener in together] == [0, 299, 299, 299]
    assert other.sequence.cached_tokens == 0
    assert len({tuple(listener.tokens) for listener in together}) == 1


def test_who_waits_for_anothers_prompt_does_not_end_with_it(generator: Generator) -> None:
    first = started(generator, 1, 5, length=4000)
    waiting = [started(generator, 1, 5, length=4000) for _ in range(2)]
    eventually(lambda: generator.active >= 1 or first.ended.is_set())
    generator.cancel(first.sequence)
    for listener in waiting:
        assert isinstance(listener.finished(), Finished)


def test_a_client_that_leaves_frees_its_slot_at_the_next_token(generator: Generator) -> None:
    listeners = [started(generator, number, ENDLESS) for number in range(MAX_RUNNING)]
    eventually(lambda: generator.active == MAX_RUNNING)
    waiting = started(generator, 77, 3)
    generator.cancel(listeners[3].sequence)
    assert isinstance(waiting.finished(), Finished)
    heard = len(listeners[3].tokens)
    for listener in listeners:
        generator.cancel(listener.sequence)
    eventually(lambda: generator.active == 0)
    assert len(listeners[3].tokens) == heard


def test_the_next_turn_does_not_compute_the_last_one_again(generator: Generator) -> None:
    first = started(generator, 5, 20, length=300)
    first.finished()
    second = Listener([*prompt_of(5, 300), *first.tokens, 9, 9, 9], 5)
    generator.submit(second.sequence)
    second.finished()
    assert second.sequence.cached_tokens >= 300 + len(first.tokens) - 1


def test_a_system_prompt_is_shared_while_the_other_still_runs(generator: Generator) -> None:
    running = started(generator, 6, ENDLESS, length=200)
    assert running.first.wait(DEADLINE_S)
    other = Listener([*prompt_of(6, 150), 9, 9, 9], 5)
    generator.submit(other.sequence)
    other.finished()
    assert other.sequence.cached_tokens == 150
    generator.cancel(running.sequence)


def test_a_shared_beginning_changes_no_answer(generator: Generator, loaded: LoadedModel) -> None:
    prompt = [*prompt_of(6, 150), 9, 9, 9]
    fresh = Generator(loaded)
    fresh.start()
    alone = Listener(prompt, 30)
    fresh.submit(alone.sequence)
    alone.finished()
    fresh.close()
    started(generator, 6, 5, length=200).finished()
    sharing = Listener(prompt, 30)
    generator.submit(sharing.sequence)
    sharing.finished()
    assert sharing.sequence.cached_tokens == 150
    assert sharing.tokens == alone.tokens


class Broken:
    """A grammar that fails after some tokens."""

    def __init__(self, tokens: int) -> None:
        self._left = tokens

    def mask(self, _: torch.Tensor) -> None:
        if self._left == 0:
            raise RuntimeError("no rule matches")

    def accept(self, _: int) -> None:
        self._left -= 1


def test_one_sequence_that_fails_fails_alone(generator: Generator) -> None:
    alone = started(generator, 1, 40)
    alone.finished()
    others = [started(generator, 1, 40), started(generator, 2, 40)]
    broken = Listener(prompt_of(3), 40, Broken(5))
    generator.submit(broken.sequence)
    end = broken.finished()
    assert isinstance(end, Failed)
    assert "no rule matches" in end.message
    assert [type(other.finished()) for other in others] == [Finished, Finished]
    assert others[0].tokens == alone.tokens


class Flaky(torch.nn.Module):
    """A model whose third call fails."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._model = model
        self._calls = 0

    def forward(self, **inputs: Any) -> Any:
        self._calls += 1
        if self._calls == 3:
            raise RuntimeError("the device is lost")
        return self._model(**inputs)


def test_a_step_that_fails_ends_its_sequences_with_the_reason_and_the_next_ones_are_served(loaded: LoadedModel) -> None:
    generator = Generator(dataclasses.replace(loaded, model=Flaky(loaded.model), decoder=None))
    generator.start()
    end = started(generator, 1, 40).finished()
    assert isinstance(end, Failed)
    assert "the device is lost" in end.message
    assert isinstance(started(generator, 1, 40).finished(), Finished)
    assert generator.active == 0
    generator.close()


def test_an_embedding_is_computed_between_the_steps_of_others(generator: Generator) -> None:
    running = started(generator, 1, ENDLESS)
    assert running.first.wait(DEADLINE_S)
    vector = generator.embed(prompt_of(2)).result(DEADLINE_S)
    assert sum(value * value for value in vector) == pytest.approx(1.0, abs=1e-4)
    assert not running.ended.is_set()
    generator.cancel(running.sequence)


def test_a_long_text_does_not_stall_those_who_generate(generator: Generator) -> None:
    running = started(generator, 1, ENDLESS)
    assert running.first.wait(DEADLINE_S)
    before = len(running.tokens)
    generator.embed(prompt_of(2, 2000)).result(DEADLINE_S)
    assert len(running.tokens) - before >= 2000 // 128
    generator.cancel(running.sequence)


def test_a_text_that_nobody_waits_for_is_dropped_and_leaves_its_slot(generator: Generator) -> None:
    vectors = [generator.embed(prompt_of(number, 4000)) for number in range(20)]
    for vector in vectors:
        vector.cancel()
    assert isinstance(started(generator, 1, 3).finished(), Finished)
    full = [started(generator, number, ENDLESS) for number in range(MAX_RUNNING)]
    eventually(lambda: generator.active == MAX_RUNNING)
    for listener in full:
        generator.cancel(listener.sequence)


def test_after_a_thousand_requests_with_random_cancellations_every_slot_and_all_memory_is_back(
    generator: Generator,
) -> None:
    chance = random.Random(20261122)
    pending: list[Listener] = []
    memory = 0
    for number in range(1000):
        listener = started(generator, number, chance.randint(1, 30), length=chance.randint(1, 60))
        pending.append(listener)
        while len(pending) > chance.randint(0, 20):
            leaving = pending.pop(chance.randrange(len(pending)))
            if chance.random() < 0.5:
                generator.cancel(leaving.sequence)
            else:
                assert isinstance(leaving.finished(), Finished)
        if number == 300:  # by now every slot has been written
            memory = psutil.Process().memory_info().rss
    for listener in pending:
        listener.finished()
    eventually(lambda: (generator.active, generator.queued) == (0, 0))
    assert psutil.Process().memory_info().rss - memory < 64 << 20
    full = [started(generator, number, ENDLESS) for number in range(MAX_RUNNING)]
    eventually(lambda: generator.active == MAX_RUNNING)
    for listener in full:
        generator.cancel(listener.sequence)
