"""In fp32 an answer is the same alone, in a batch, and resumed from where it was cut; and it is the model's own.

Each claim is made for 16 prompts of different lengths on three architectures. transformers' own `generate` says what is
right for greedy answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny_model
from tests.kernel.generating import GREEDY, TOKENS, Engine, cuts_of, engine, resumed

from tiermesh.kernel.inference.loading import load
from tiermesh.kernel.inference.sequence import Finished, Sampling

KINDS: tuple[tiny_model.Kind, ...] = ("llama", "qwen2", "gpt2")
REQUESTS = 16
BROKEN = "\N{REPLACEMENT CHARACTER}"
"""At the very end of an answer, the beginning of a character is not shown."""
PROMPTS = [[5 + (7 * index + 3 * place) % 390 for place in range(1 + index * index)] for index in range(REQUESTS)]
"""From 1 to 226 tokens; no two begin alike."""
SAMPLED = Sampling(
    temperature=0.9,
    seed=11,
    top_p=0.95,
    min_p=0.001,
    repetition_penalty=1.05,
    frequency_penalty=0.2,
    logit_bias={7: 1.0},
)


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
def fp32(folder: Path) -> Iterator[Engine]:
    with engine(folder, "fp32") as served:
        yield served


@pytest.fixture(scope="module")
def adapted(folder: Path, adapters: dict[str, Path]) -> Iterator[Engine]:
    with engine(folder, "fp32", adapters=adapters) as served:
        yield served


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
    with engine(folder, "fp32") as unused:
        fresh = unused.answer(requests)
    assert fp32.answer_alone(requests) == fresh
    assert fp32.answer(requests) == fresh
    assert fp32.answer(requests) == fresh


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("shift", [0, 1, 17])
def test_a_cut_answer_goes_on_as_it_would_have(fp32: Engine, sampling: Sampling, shift: int) -> None:
    whole = fp32.answer(asked(sampling=sampling))
    cuts = cuts_of(whole, shift)
    requests = resumed(asked(sampling=sampling), whole, cuts)
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


def test_nothing_comes_after_the_last_token(fp32: Engine) -> None:
    requests = asked(sampling=replace(SAMPLED, logit_bias={tiny_model.END: 4.0}))
    whole = fp32.answer(requests)
    ends = [answer.end for answer in whole if answer.end is not None]
    assert {end.reason for end in ends} == {"stop", "length"}
    again = fp32.answer(resumed(requests, whole, [len(answer.tokens) for answer in whole]))
    for answer, undisturbed in zip(again, whole, strict=True):
        assert answer.replayed + answer.text == undisturbed.text
    assert [answer.end for answer in again] == [Finished(end.reason, end.completion_tokens) for end in ends]


def test_it_may_be_cut_again_and_again(fp32: Engine) -> None:
    whole = fp32.answer(asked())
    held: list[tuple[int, ...]] = [() for _ in PROMPTS]
    for length in range(7, TOKENS + 7, 7):
        requests = [r | {"resumed": h, "max_tokens": min(length, TOKENS)} for r, h in zip(asked(), held, strict=True)]
        answers = fp32.answer(requests)
        held = [(*before, *answer.tokens) for before, answer in zip(held, answers, strict=True)]
    assert [list(tokens) for tokens in held] == [answer.tokens for answer in whole]


def test_adapters_in_one_batch_answer_as_each_would_alone(adapted: Engine, fp32: Engine) -> None:
    """Prompts by turns for the base and two adapters; those of one kind are neighbours nowhere."""
    requests = [request | {"adapter": (None, "a", "b")[index % 3]} for index, request in enumerate(asked())]
    batched = adapted.answer(requests)
    assert batched == adapted.answer_alone(requests)
    of_base = fp32.answer(asked())
    assert [index for index in range(REQUESTS) if batched[index] == of_base[index]] == [0, 3, 6, 9, 12, 15]
    again = adapted.answer(resumed(requests, batched, [9] * REQUESTS))
    assert [answer.tokens for answer in again] == [answer.tokens[9:] for answer in batched]


def test_what_one_adapter_cached_serves_no_other(adapted: Engine) -> None:
    requests = [{"prompt": PROMPTS[10][1:], "adapter": name} for name in (None, "a", "b")]
    alone = adapted.answer_alone(requests * 2)
    assert alone == adapted.answer(requests) * 2
    assert len({tuple(answer.tokens) for answer in alone}) == 3


def test_in_bf16_nothing_is_lost_or_repeated_at_the_seam(folder: Path) -> None:
    """Later tokens may differ, because other batches round differently; what was shown stays, and is counted once."""
    requests = asked(max_tokens=24)
    with engine(folder, "bf16") as bf16:
        whole = bf16.answer(requests)
        cuts = cuts_of(whole)
        answers = bf16.answer(resumed(requests, whole, cuts))
    decode = load(folder, precision="bf16", threads=1).decode
    for answer, undisturbed, cut in zip(answers, whole, cuts, strict=True):
        tokens = undisturbed.tokens[:cut] + answer.tokens
        assert undisturbed.text.startswith(answer.replayed)
        assert (answer.replayed + answer.text).rstrip(BROKEN) == decode(tokens).rstrip(BROKEN)
        assert answer.end is not None
        assert answer.end.completion_tokens == len(tokens)
