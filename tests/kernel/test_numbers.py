"""In fp32 an answer is the same alone, in a batch, and resumed from where it was cut; and it is the model's own.

Each claim is made for 16 prompts of different lengths on three architectures. transformers' own `generate` says what is
right for greedy answers.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny_model

from tiermesh.kernel.inference.generation import Generator
from tiermesh.kernel.inference.loading import load
from tiermesh.kernel.inference.precision import Precision
from tiermesh.kernel.inference.sequence import Choice, Event, Failed, Finished, Replayed, Sampling, Text
from tiermesh.kernel.inference.sequence import Sequence as Generation

KINDS: tuple[tiny_model.Kind, ...] = ("llama", "qwen2", "gpt2")
REQUESTS = 16
TOKENS = 40
DEADLINE_S = 60.0
BROKEN = "\N{REPLACEMENT CHARACTER}"
"""At the very end of an answer, the beginning of a character is not shown."""
PROMPTS = [[5 + (7 * index + 3 * place) % 390 for place in range(1 + index * index)] for index in range(REQUESTS)]
"""From 1 to 226 tokens; no two begin alike."""
GREEDY = Sampling(temperature=0.0, seed=0)
SAMPLED = Sampling(
    temperature=0.9,
    seed=11,
    top_p=0.95,
    min_p=0.001,
    repetition_penalty=1.05,
    frequency_penalty=0.2,
    logit_bias={7: 1.0},
)


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
class Engine:
    """A generator with nothing in its cache at first."""

    generator: Generator

    def answer(self, requests: Sequence[dict[str, Any]]) -> list[Answer]:
        """All of them at once."""
        pending = [self._submit(request) for request in requests]
        return [_collect(events) for events in pending]

    def answer_alone(self, requests: Sequence[dict[str, Any]]) -> list[Answer]:
        return [self.answer([request])[0] for request in requests]

    def _submit(self, request: dict[str, Any]) -> queue.Queue[Event]:
        events: queue.Queue[Event] = queue.Queue()
        settings: dict[str, Any] = {"sampling": GREEDY, "max_tokens": TOKENS, "stops": ()} | request
        self.generator.submit(Generation(**settings, emit=events.put))
        return events


def _collect(events: queue.Queue[Event]) -> Answer:
    answer = Answer()
    while answer.end is None:
        match events.get(timeout=DEADLINE_S):
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
    return answer


def engine(folder: Path, precision: Precision, **adapters: Path) -> Engine:
    generator = Generator(load(folder, precision=precision, threads=1, memory_bytes=64 << 20, adapters=adapters))
    generator.start()
    return Engine(generator)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> tiny_model.Kind:
    chosen: tiny_model.Kind = request.param
    return chosen


@pytest.fixture(scope="module")
def folder(kind: tiny_model.Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_folder(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def adapters(kind: tiny_model.Kind, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("adapters")
    return {name: tiny_model.build_adapter(parent / name, kind, seed=seed) for seed, name in enumerate("ab")}


@pytest.fixture(scope="module")
def fp32(folder: Path) -> Engine:
    return engine(folder, "fp32")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    """The tokens that transformers generates, each prompt by itself."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return [_generate(model, prompt) for prompt in PROMPTS]


def _generate(model: Any, prompt: list[int]) -> list[int]:
    output = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=TOKENS, do_sample=False
    )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


def asked(**more: Any) -> list[dict[str, Any]]:
    return [{"prompt": prompt, **more} for prompt in PROMPTS]


def resumed(whole: Sequence[Answer], cuts: Sequence[int], **more: Any) -> list[dict[str, Any]]:
    """The same requests, each with the beginning of its answer."""
    return [
        request | {"resumed": tuple(answer.tokens[:cut])}
        for request, answer, cut in zip(asked(**more), whole, cuts, strict=True)
    ]


def cuts_of(whole: Sequence[Answer], shift: int = 0) -> list[int]:
    """One place each, all over the answers, never behind the last token."""
    return [(5 * index + shift) % len(answer.tokens) for index, answer in enumerate(whole)]


def test_a_batch_of_16_says_what_generate_says_of_each(fp32: Engine, expected: list[list[int]]) -> None:
    assert [answer.tokens for answer in fp32.answer(asked())] == expected


def test_each_alone_says_what_generate_says(fp32: Engine, expected: list[list[int]]) -> None:
    assert [answer.tokens for answer in fp32.answer_alone(asked())] == expected


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_batch_equals_each_alone(fp32: Engine, sampling: Sampling) -> None:
    assert fp32.answer(asked(sampling=sampling)) == fp32.answer_alone(asked(sampling=sampling))


def test_what_the_cache_holds_changes_nothing(fp32: Engine, folder: Path) -> None:
    """Prompts that begin alike, one after the other and at once, against an engine that has never seen them."""
    beginning = PROMPTS[9]
    requests = [{"prompt": [*beginning, *PROMPTS[index][: index + 1]]} for index in range(REQUESTS)]
    fresh = engine(folder, "fp32").answer(requests)
    assert fp32.answer_alone(requests) == fresh
    assert fp32.answer(requests) == fresh
    assert fp32.answer(requests) == fresh


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("shift", [0, 1, 17])
def test_a_cut_answer_goes_on_as_it_would_have(fp32: Engine, sampling: Sampling, shift: int) -> None:
    whole = fp32.answer(asked(sampling=sampling))
    cuts = cuts_of(whole, shift)
    requests = resumed(whole, cuts, sampling=sampling)
    for answers in (fp32.answer(requests), fp32.answer_alone(requests)):
        for answer, undisturbed, cut in zip(answers, whole, cuts, strict=True):
            assert answer.tokens == undisturbed.tokens[cut:]
            assert answer.replayed + answer.text == undisturbed.text
            assert answer.end == undisturbed.end


def test_it_may_be_cut_at_every_token(fp32: Engine) -> None:
    whole = fp32.answer([asked(sampling=SAMPLED)[5]])[0]
    request = {"prompt": PROMPTS[5], "sampling": SAMPLED}
    for cut in range(1, len(whole.tokens)):
        answer = fp32.answer([request | {"resumed": tuple(whole.tokens[:cut])}])[0]
        assert (answer.tokens, answer.replayed + answer.text) == (whole.tokens[cut:], whole.text)


def test_it_may_be_cut_again_and_again(fp32: Engine) -> None:
    whole = fp32.answer(asked())
    held: list[tuple[int, ...]] = [() for _ in PROMPTS]
    for length in range(7, TOKENS + 7, 7):
        requests = [r | {"resumed": h, "max_tokens": min(length, TOKENS)} for r, h in zip(asked(), held, strict=True)]
        answers = fp32.answer(requests)
        held = [(*before, *answer.tokens) for before, answer in zip(held, answers, strict=True)]
    assert [list(tokens) for tokens in held] == [answer.tokens for answer in whole]


def test_adapters_in_one_batch_answer_as_each_would_alone(folder: Path, adapters: dict[str, Path]) -> None:
    """Prompts by turns for the base and two adapters; those of one kind are neighbours nowhere."""
    served = engine(folder, "fp32", **adapters)
    requests = [request | {"adapter": (None, "a", "b")[index % 3]} for index, request in enumerate(asked())]
    batched = served.answer(requests)
    assert batched == served.answer_alone(requests)
    of_base = engine(folder, "fp32").answer(asked())
    assert [index for index in range(REQUESTS) if batched[index] == of_base[index]] == [0, 3, 6, 9, 12, 15]
    again = served.answer([r | {"resumed": tuple(a.tokens[:9])} for r, a in zip(requests, batched, strict=True)])
    assert [answer.tokens for answer in again] == [answer.tokens[9:] for answer in batched]


def test_what_one_adapter_cached_serves_no_other(folder: Path, adapters: dict[str, Path]) -> None:
    requests = [{"prompt": PROMPTS[9], "adapter": name} for name in (None, "a", "b")]
    served = engine(folder, "fp32", **adapters)
    assert served.answer_alone(requests * 2) == served.answer(requests) * 2
    assert len({tuple(answer.tokens) for answer in served.answer(requests)}) == 3


def test_in_bf16_nothing_is_lost_or_repeated_at_the_seam(folder: Path) -> None:
    """Later tokens may differ, because other batches round differently; what was shown stays, and is counted once."""
    bf16 = engine(folder, "bf16")
    whole = bf16.answer(asked(max_tokens=24))
    cuts = cuts_of(whole)
    decode = load(folder, precision="bf16", threads=1).decode
    for answer, undisturbed, cut in zip(bf16.answer(resumed(whole, cuts, max_tokens=24)), whole, cuts, strict=True):
        tokens = undisturbed.tokens[:cut] + answer.tokens
        assert undisturbed.text.startswith(answer.replayed)
        assert (answer.replayed + answer.text).rstrip(BROKEN) == decode(tokens).rstrip(BROKEN)
        assert answer.end is not None
        assert answer.end.completion_tokens == len(tokens)
