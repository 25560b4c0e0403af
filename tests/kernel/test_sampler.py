"""A token depends on logits, seed, position and the tokens before it alone."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from tiermesh.kernel.inference.sampler import LIKELIEST, Chooser, NotFinite, exponentials, sample
from tiermesh.kernel.inference.sequence import Choice, Sampling

PROBABILITIES = {0: 0.5, 1: 0.05, 2: 0.3, 3: 0.15}
LOGITS = torch.log(torch.tensor(list(PROBABILITIES.values())))


def sampling(temperature: float = 1.0, seed: int = 7, **more: Any) -> Sampling:
    return Sampling(temperature=temperature, seed=seed, **more)


def counted(temperature: float = 1.0, *, draws: int = 2000, **more: Any) -> dict[int, float]:
    tokens = [sample(LOGITS, sampling(temperature, **more), position) for position in range(draws)]
    return {token: count / draws for token, count in Counter(tokens).items()}


def choose(logits: list[float], prompt: tuple[int, ...] = (), output: tuple[int, ...] = (), **more: Any) -> int:
    chooser = Chooser(sampling(0, **more), prompt)
    for token in output:
        chooser.accept(token)
    return chooser.choose(torch.tensor(logits), 0).token


class Only:
    """A grammar in which some tokens may come."""

    def __init__(self, *allowed: int) -> None:
        self._allowed = list(allowed)

    def mask(self, logits_V: torch.Tensor) -> None:
        allowed_V = torch.zeros_like(logits_V, dtype=torch.bool)
        allowed_V[self._allowed] = True
        logits_V[~allowed_V] = -math.inf

    def accept(self, token: int) -> None: ...


def test_temperature_0_is_greedy_and_the_lowest_id_wins_ties() -> None:
    assert sample(torch.tensor([1.0, 3.0, 3.0]), sampling(0), position=0) == 1


def test_temperature_1_draws_from_the_models_own_distribution() -> None:
    assert counted() == pytest.approx(PROBABILITIES, abs=0.04)


def test_a_low_temperature_sharpens_and_a_high_one_flattens() -> None:
    assert counted(0.01) == {0: 1.0}
    assert counted(2.0)[0] < 0.42


def test_top_p_keeps_the_token_that_crosses_it_and_nothing_after() -> None:
    assert counted(top_p=0.6) == pytest.approx({0: 0.5 / 0.8, 2: 0.3 / 0.8}, abs=0.04)
    assert counted(top_p=0.5 - 1e-6) == {0: 1.0}
    assert counted(top_p=1e-9) == {0: 1.0}


def test_top_k_keeps_the_likeliest_and_0_all() -> None:
    assert counted(top_k=1) == {0: 1.0}
    assert counted(top_k=2) == pytest.approx({0: 0.5 / 0.8, 2: 0.3 / 0.8}, abs=0.04)
    for everything in (0, 4, 99):
        assert counted(top_k=everything) == pytest.approx(PROBABILITIES, abs=0.04)


def test_top_k_alone_keeps_exactly_so_many() -> None:
    logits_V = torch.randn(3000, generator=torch.Generator().manual_seed(2)) / 1e6
    drawn = {sample(logits_V, sampling(top_k=12), position) for position in range(400)}
    assert drawn == set(logits_V.topk(12).indices.tolist())


def test_top_p_is_a_share_of_what_top_k_left() -> None:
    assert set(counted(top_k=2, top_p=0.62)) == {0}, "0.5 of 0.8 is 0.625"
    assert set(counted(top_k=2, top_p=0.63)) == {0, 2}


def test_min_p_is_relative_to_the_likeliest() -> None:
    assert set(counted(min_p=0.31)) == {0, 2}
    assert set(counted(min_p=0.29)) == {0, 2, 3}
    assert set(counted(min_p=0.31, top_p=0.99)) == {0, 2}
    assert set(counted(min_p=1.0)) == {0}


def test_of_equally_likely_tokens_the_lowest_ids_are_kept() -> None:
    flat = torch.zeros(5000)
    for kept in (sampling(top_k=10), sampling(top_p=0.00199)):
        assert {sample(flat, kept, position) for position in range(400)} == set(range(10))


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999, 1 - 1e-12])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_the_fast_way_to_top_p_equals_the_full_sort(top_p: float, spread: float) -> None:
    vocabulary = 8 * LIKELIEST
    logits_V = spread * torch.randn(vocabulary, generator=torch.Generator().manual_seed(1))
    logits_V = (logits_V * 64).round() / 64  # many equals
    for position in range(20):
        expected = by_full_sort(logits_V, top_p, position)
        assert sample(logits_V, sampling(top_p=top_p), position) == expected


def by_full_sort(logits_V: torch.Tensor, top_p: float, position: int) -> int:
    probabilities_V, order_V = torch.softmax(logits_V.double(), 0).sort(descending=True, stable=True)
    kept_K = order_V[: int((probabilities_V.cumsum(0) - probabilities_V < top_p).sum())]
    noise_K = torch.from_numpy(exponentials(7, position, kept_K.numpy()))
    return int(kept_K[(logits_V[kept_K] - noise_K.log()).argmax()])


@pytest.mark.parametrize("top_p", [1.0, 0.95])
@pytest.mark.parametrize(("rounding", "share"), [(1e-5, 0.0), (1e-2, 0.03)])
def test_logits_rounded_otherwise_rarely_change_a_choice(top_p: float, rounding: float, share: float) -> None:
    """What another batch (1e-5) or bf16 (1e-2) does to logits. Inverting the cumulative distribution, half differ."""
    random = torch.Generator().manual_seed(0)
    changed = 0
    for position in range(100):
        logits_V = 2.5 * torch.randn(32768, generator=random)
        rounded_V = logits_V + rounding * torch.randn(32768, generator=random)
        one, other = (sample(each, sampling(top_p=top_p), position) for each in (logits_V, rounded_V))
        changed += one != other
    assert changed <= 100 * share


def test_the_same_seed_and_position_give_the_same_token_and_others_do_not() -> None:
    flat = torch.zeros(1000)
    assert sample(flat, sampling(seed=1), 5) == sample(flat, sampling(seed=1), 5)
    assert len({sample(flat, sampling(seed=1), position) for position in range(50)}) > 40
    assert len({sample(flat, sampling(seed=seed), 5) for seed in range(50)}) > 40


def test_the_numbers_behind_it_never_change() -> None:
    """Another version of Tiermesh on another machine must continue this one's streams."""
    drawn = [exponentials(seed, position, np.array([token])) for seed, position, token in PINNED]
    assert [float(number[0]) for number in drawn] == pytest.approx(list(PINNED.values()), rel=1e-14)


def test_they_are_the_published_generators() -> None:
    """SplitMix64 in whole numbers, as Java's SplittableRandom has it."""
    state = int.from_bytes(hashlib.blake2b(b"3:5", digest_size=8).digest(), "big")
    expected = []
    for _ in range(10):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        bits = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) % 2**64
        bits ^= bits >> 31
        expected.append(-math.log(((bits >> 12) + 0.5) / 2**52))
    assert exponentials(3, 5, np.arange(10)).tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("temperature", [1e-300, 1e-5, 1.0])
@pytest.mark.parametrize("more", [{}, {"top_p": 0.9}, {"top_k": 2}, {"min_p": 0.5}])
def test_extreme_temperatures_stay_finite(temperature: float, more: dict[str, Any]) -> None:
    assert sample(torch.tensor([1e30, -1e30, 0.0]), sampling(temperature, **more), 0) == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_model_is_noticed(bad: float, temperature: float) -> None:
    with pytest.raises(NotFinite, match="position 9"):
        Chooser(sampling(temperature), ()).choose(torch.tensor([0.0, bad]), 9)


def test_a_grammar_decides_what_may_come() -> None:
    chooser = Chooser(sampling(1.0, top_p=0.9), ())
    drawn = {chooser.choose(LOGITS.clone(), position, Only(1, 3)).token for position in range(100)}
    assert drawn == {1, 3}


def test_no_bias_brings_back_what_the_grammar_forbids() -> None:
    chooser = Chooser(sampling(0, logit_bias={0: 100.0}), ())
    assert chooser.choose(LOGITS.clone(), 0, Only(1, 3)).token == 3


def test_a_grammar_that_leaves_nothing_is_noticed() -> None:
    with pytest.raises(NotFinite):
        Chooser(sampling(), ()).choose(LOGITS.clone(), 0, Only())


def test_logit_bias_is_added_to_the_logits() -> None:
    assert choose([1.0, 3.0, 2.0], logit_bias={2: 1.5}) == 2
    assert choose([1.0, 3.0, 2.0], logit_bias={1: -100, 2: -1.5}) == 0


def test_the_repetition_penalty_counts_prompt_and_output_once_and_works_on_both_signs() -> None:
    assert choose([3.0, 2.9], prompt=(0,), repetition_penalty=1.1) == 1
    assert choose([3.0, 2.9], output=(0,), repetition_penalty=1.1) == 1
    assert choose([-1.0, -1.05], prompt=(0,), repetition_penalty=1.1) == 1
    assert choose([3.0, 2.9], prompt=(0, 0), output=(0, 0, 0), repetition_penalty=1.03) == 0
    assert choose([3.0, 2.9], prompt=(0, 1), repetition_penalty=2.0) == 0


def test_the_presence_penalty_counts_a_token_of_the_output_once() -> None:
    assert choose([3.0, 2.0], output=(0, 0, 0), presence_penalty=0.9) == 0
    assert choose([3.0, 2.0], output=(0,), presence_penalty=1.1) == 1
    assert choose([3.0, 2.0], prompt=(0,), presence_penalty=1.1) == 0


def test_the_frequency_penalty_counts_every_time() -> None:
    assert choose([3.0, 2.0], output=(0, 0), frequency_penalty=0.4) == 0
    assert choose([3.0, 2.0], output=(0, 0, 0), frequency_penalty=0.4) == 1
    assert choose([3.0, 2.0], output=(0,), frequency_penalty=0.6, presence_penalty=0.6) == 1
    assert choose([3.0, 2.0], output=(1, 1), frequency_penalty=-0.6) == 1


def test_logprobs_are_the_models_own_whatever_was_applied() -> None:
    chooser = Chooser(sampling(0.5, logprobs=2, logit_bias={1: 50.0}, top_k=1), ())
    choice = chooser.choose(LOGITS.clone(), 0, Only(1, 2))
    assert choice.token == 1
    assert choice.logprob == pytest.approx(math.log(0.05))
    assert [token for token, _ in choice.alternatives] == [0, 2]
    assert [value for _, value in choice.alternatives] == pytest.approx([math.log(0.5), math.log(0.3)])


def test_logprobs_come_as_they_are_asked_for() -> None:
    assert Chooser(sampling(0), ()).choose(LOGITS.clone(), 0) == Choice(0)
    none_beside = Chooser(sampling(0, logprobs=0), ()).choose(LOGITS.clone(), 0)
    assert none_beside.logprob == pytest.approx(math.log(0.5))
    assert none_beside.alternatives == ()
    assert len(Chooser(sampling(0, logprobs=20), ()).choose(LOGITS.clone(), 0).alternatives) == 4


PINNED = {(0, 0, 0): 0.008785672900280844, (42, 100, 7): 0.14675300343507997, (-1, 3, 49_151): 0.041445326290320154}
