"""Layers that were joined or packed compute what they did."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tiermesh.kernel.inference import linear
from tiermesh.kernel.inference.linear import Joined, PackedLinear, Sibling


class Attention(nn.Module):
    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(16, size, bias=bias) for size in (16, 8, 8))

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.q_proj(rows), self.k_proj(rows), self.v_proj(rows)


@pytest.mark.parametrize("bias", [True, False])
def test_joined_layers_compute_what_they_did(bias: bool) -> None:
    model = Attention(bias=bias)
    rows = torch.randn(1, 5, 16)
    with torch.inference_mode():
        before = model(rows)
        assert linear.join(model) == 1
        after = model(rows)
    torch.testing.assert_close(after, before)
    assert [type(layer) for layer in model.children()] == [Sibling] * 3


def test_one_product_serves_all_of_one_input_and_the_next_input_is_computed_anew() -> None:
    model = Attention(bias=False)
    linear.join(model)
    joined = next(module for module in model.modules() if isinstance(module, Joined))
    calls: list[int] = []
    joined.whole.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        first, second = torch.randn(1, 2, 16), torch.randn(1, 2, 16)
        model(first)
        assert len(calls) == 1
        model(second)
    assert len(calls) == 2


def test_whoever_gets_a_result_may_write_into_it() -> None:
    model = Attention(bias=False)
    linear.join(model)
    rows = torch.randn(1, 2, 16)
    with torch.inference_mode():
        query = model.q_proj(rows)
        expected = query.clone()
        query += 1
        torch.testing.assert_close(model.q_proj(rows), expected)


def test_layers_that_differ_in_their_inputs_stay_apart() -> None:
    model = Attention(bias=False)
    model.k_proj = nn.Linear(12, 8)
    assert linear.join(model) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_computes_what_it_did_for_any_number_of_rows(dtype: torch.dtype, bias: bool) -> None:
    plain = nn.Linear(64, 96, bias=bias, dtype=dtype)
    with torch.inference_mode():
        packed = PackedLinear(plain)
        for count in (1, 2, 8, 33):
            rows = torch.randn(1, count, 64, dtype=dtype)
            torch.testing.assert_close(packed(rows), plain(rows), atol=2e-2, rtol=2e-2)


def test_layers_are_packed_only_where_that_is_faster_and_stay_right_either_way() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 128))
    rows = torch.randn(3, 64)
    with torch.inference_mode():
        before = model(rows)
        count = linear.pack(model)
        torch.testing.assert_close(model(rows), before, atol=1e-5, rtol=1e-4)
    assert count == sum(isinstance(layer, PackedLinear) for layer in model)
