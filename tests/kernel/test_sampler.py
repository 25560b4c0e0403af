"""A token depends on logits, seed and position alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tiermesh.kernel.inference.sampler import NotFinite, sample, uniform
from tiermesh.kernel.inference.sequence import Sampling

LOGITS = torch.log(torch.tensor([0.5, 0.05, 0.3, 0.15]))


def counted(temperature: float, *, top_p: float, draws: int = 2000) -> dict[int, float]:
    tokens = [sample(LOGITS, Sampling(temperature, top_p, 7), position) for position in range(draws)]
    return {token: count / draws for token, count in Counter(tokens).items()}


def test_temperature_0_is_greedy_and_the_lowest_id_wins_ties() -> None:
    assert sample(torch.tensor([1.0, 3.0, 3.0]), Sampling(0.0, 1.0, seed=1), position=0) == 1


def test_temperature_1_draws_from_the_models_own_distribution() -> None:
    assert counted(1.0, top_p=1.0) == pytest.approx({0: 0.5, 1: 0.05, 2: 0.3, 3: 0.15}, abs=0.04)


def test_a_low_temperature_sharpens_and_a_high_one_flattens() -> None:
    assert counted(0.01, top_p=1.0) == {0: 1.0}
    assert counted(2.0, top_p=1.0)[0] < 0.42


def test_top_p_keeps_the_token_that_crosses_it_and_nothing_after() -> None:
    assert counted(1.0, top_p=0.6) == pytest.approx({0: 0.5 / 0.8, 2: 0.3 / 0.8}, abs=0.04)
    assert counted(1.0, top_p=0.5) == {0: 1.0}
    assert counted(1.0, top_p=1e-9) == {0: 1.0}


def test_the_same_seed_and_position_give_the_same_token_and_others_do_not() -> None:
    flat = torch.zeros(1000)
    assert sample(flat, Sampling(1.0, 1.0, seed=1), 5) == sample(flat, Sampling(1.0, 1.0, seed=1), 5)
    assert len({sample(flat, Sampling(1.0, 1.0, seed=1), position) for position in range(50)}) > 40
    assert len({sample(flat, Sampling(1.0, 1.0, seed=seed), 5) for seed in range(50)}) > 40


def test_the_numbers_behind_it_never_change() -> None:
    """Another version of Tiermesh on another machine must continue this one's streams."""
    assert [uniform(0, 0), uniform(42, 100), uniform(-1, 3)] == PINNED


@pytest.mark.parametrize("temperature", [1e-300, 1e-5, 1.0])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    assert 0 <= sample(torch.tensor([1e30, -1e30, 0.0]), Sampling(temperature, 1.0, seed=3), 0) < 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_model_is_noticed(bad: float) -> None:
    with pytest.raises(NotFinite, match="position 9"):
        sample(torch.tensor([0.0, bad]), Sampling(0.0, 1.0, seed=0), 9)


PINNED = [0.8336885269740499, 0.9979239551801413, 0.10925695744108788]
