"""Attention by documents: the same numbers as with a mask, for any way to lay documents into rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests import tiny_model
from tests.training.runs import spec_of

from tiermesh.kernel.training import attention, models
from tiermesh.kernel.training.attention import _lengths_of
from tiermesh.kernel.training.data.isolation import leakage


@pytest.mark.parametrize(
    ("positions", "lengths"),
    [
        ([0, 1, 2, 3], [4]),
        ([0, 1, 0, 1, 2], [2, 3]),
        ([0, 1, 2, 0, 0, 0], [3, 3]),  # padding
        ([0, 0, 1, 2], [1, 3]),  # a document of one token before another
        ([0, 1, 0, 0, 1], [2, 1, 2]),
        ([0, 1, 0], [2, 1]),
        ([5, 6, 7, 0, 1], [3, 2]),  # one that was begun in another row
    ],
)
def test_documents_of_a_row(positions: list[int], lengths: list[int]) -> None:
    assert _lengths_of(positions) == lengths


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_a_packed_row_computes_what_a_mask_would(kind: tiny_model.Kind, tmp_path: Path) -> None:
    folder = tiny_model.build_folder(tmp_path, kind)
    ours, masked = (models.load(spec_of(attention=chosen), folder) for chosen in ("auto", "sdpa"))
    assert masked.causal.config._attn_implementation == "sdpa"
    assert ours.causal.config._attn_implementation == attention.IMPLEMENTATION
    assert leakage(ours.causal) == 0.0
    chance = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(3, tiny_model.VOCABULARY, (2, 12), generator=chance)
    positions_BT = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0, 0, 0], [0, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3]])
    read_BT = torch.ones(2, 12, dtype=torch.bool)
    read_BT[0, 8:] = False  # padding
    results = []
    for trainee in (ours, masked):
        trainee.model.eval()
        with torch.no_grad():
            for tensor in trainee.trainables.values():
                tensor.add_(0.1)
        states_BTE = trainee.states(tokens_BT, positions_BT)
        states_BTE[read_BT].square().sum().backward()  # type: ignore[no-untyped-call]
        results.append((states_BTE[read_BT].detach(), {n: t.grad for n, t in trainee.trainables.items()}))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-4)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], atol=1e-3, rtol=1e-3, msg=name)


def test_windows_and_bent_scores_are_left_to_masks() -> None:
    from transformers import Gemma2Config, MistralConfig, Qwen2Config

    assert not attention.serves(MistralConfig(sliding_window=64))
    assert not attention.serves(Gemma2Config())
    assert not attention.serves(Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=0))
    assert attention.serves(Qwen2Config())
    assert attention.serves(MistralConfig(sliding_window=None))
