"""Attention by documents: the same numbers as with a mask, for any way to lay documents into rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests import tiny_model
from tests.training.runs import spec_of

from tiermesh.kernel.training import attention, guard, models
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


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_weights_in_fp32_are_computed_in_bf16_as_with_a_mask(kind: tiny_model.Kind, tmp_path: Path) -> None:
    """Rotated queries and keys are wider than values then."""
    folder = tiny_model.build_folder(tmp_path, kind)
    tokens_BT = torch.arange(3, 27).view(2, 12)
    positions_BT = torch.tensor([[*range(5), *range(7)], [*range(12)]])
    found = []
    for chosen in ("auto", "sdpa"):
        trainee = models.load(spec_of(attention=chosen, method="full_finetune", precision="bf16"), folder)
        trainee.model.eval()
        states_BTE = trainee.states(tokens_BT, positions_BT)
        states_BTE.float().square().mean().backward()  # type: ignore[no-untyped-call]
        found.append((states_BTE.detach().float(), guard.gradient_norm(trainee.trainables.values())))
    torch.testing.assert_close(found[0][0], found[1][0], atol=0.1, rtol=0.1)
    assert found[0][1] == pytest.approx(found[1][1], rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_documents_of_any_lengths_are_computed_as_each_alone(dtype: torch.dtype) -> None:
    """Three heads for each key, and lengths on both sides of a multiple of the step."""
    torch.manual_seed(0)
    lengths = [[1, 31, 32, 33, 3], [64, 36], [100]]
    positions_BT = torch.tensor([[at for length in row for at in range(length)] for row in lengths])
    assert [_lengths_of(row) for row in positions_BT.tolist()] == lengths
    given = [torch.randn(3, heads, 100, 16, dtype=dtype) for heads in (6, 2, 2)]
    wanted_BTHD = torch.randn(3, 100, 6, 16, dtype=dtype)
    found = []
    for alone in (False, True):
        read = [one.clone().requires_grad_() for one in given]
        if alone:
            outputs_BTHD = torch.stack(
                [torch.cat([*each_alone(read, row, in_row)]) for row, in_row in enumerate(lengths)]
            )
        else:
            outputs_BTHD, _ = attention.attend(None, read[0], read[1], read[2], None, position_ids=positions_BT)
        (outputs_BTHD * wanted_BTHD).sum().backward()  # type: ignore[no-untyped-call]
        found.append([outputs_BTHD.detach(), *(one.grad for one in read)])
    close = 1e-5 if dtype == torch.float32 else 4e-2
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=close, rtol=close)


def each_alone(read: list[torch.Tensor], row: int, lengths: list[int]) -> Iterator[torch.Tensor]:
    for query, key, value in zip(*(torch.split(one[row], lengths, dim=1) for one in read), strict=True):
        key, value = (one.repeat_interleave(3, dim=0) for one in (key, value))
        yield torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(0, 1)


def test_lengths_that_are_new_compile_nothing_new() -> None:
    """torch keeps what it compiled for each length that its attention meets, for ever."""
    chance, widths = torch.Generator().manual_seed(0), set()
    for _ in range(50):
        ends = torch.randint(1, 512, (7,), generator=chance).sort().values.tolist()
        row = [end - begin for begin, end in pairwise([0, *ends, 512]) if end > begin]
        widths |= {group.places_NW.shape[1] for group in attention._grouped([row], 512)}
    assert widths <= set(range(attention.STEP, 513, attention.STEP))


def test_windows_and_bent_scores_are_left_to_masks() -> None:
    from transformers import Gemma2Config, MistralConfig, Qwen2Config

    assert not attention.serves(MistralConfig(sliding_window=64))
    assert not attention.serves(Gemma2Config())
    assert not attention.serves(Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=0))
    assert attention.serves(Qwen2Config())
    assert attention.serves(MistralConfig(sliding_window=None))
