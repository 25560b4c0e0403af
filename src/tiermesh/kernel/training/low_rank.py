"""Low-rank adapters (Hu et al. 2021) as peft makes, names and saves them, computed with fewer passes over memory.

peft would compute in the masters' fp32, and keep a copy of each layer's input for each dropout. Here products are
computed in the input's precision, an input is kept once for all layers that read it, and what a dropout left out is a
byte an element. Letters: N rows, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

ADAPTER = "default"
"""peft's name for the only adapter."""


class LowRankLinear(PeftLinear):  # type: ignore[misc]  # peft is untyped
    """A frozen linear layer and its adapter."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[..., I] to [..., O]; what peft computes where that is not the layer and its one adapter."""
        if self.disable_adapters or self.merged or self.active_adapters != [ADAPTER]:
            return torch.as_tensor(super().forward(x, *args, **kwargs))
        base = self.base_layer
        weight_IO = base.weight if isinstance(base, Conv1D) else base.weight.T
        dropout = self.lora_dropout[ADAPTER]
        rate = dropout.p if isinstance(dropout, nn.Dropout) and self.training else 0.0
        rows_NI = x.reshape(-1, x.shape[-1])
        kept_NI = _kept(x, rate).view(rows_NI.shape) if rate else None
        outputs_NO = _LowRank.apply(  # type: ignore[no-untyped-call]
            rows_NI,
            weight_IO,
            base.bias,
            self.lora_A[ADAPTER].weight,
            self.lora_B[ADAPTER].weight,
            kept_NI,
            self.scaling[ADAPTER] / (1.0 - rate),
        )
        return torch.as_tensor(outputs_NO).view(*x.shape[:-1], -1)


class LowRankConv1D(LowRankLinear):
    """The same for GPT-2's layers, whose weights are transposed."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, **settings: Any) -> None:
        super().__init__(base_layer, adapter_name, is_target_conv_1d_layer=True, **settings)


MODULES = {nn.Linear: LowRankLinear, Conv1D: LowRankConv1D}
"""For `LoraConfig._register_custom_module`: what takes the place of which layer."""


class _Memo:
    """Layers that read the same input drop the same of it, as if one dropout stood before them all."""

    input: torch.Tensor | None = None
    rate: float = 0.0
    kept: torch.Tensor


_memo = _Memo()


def _kept(x: torch.Tensor, rate: float) -> torch.Tensor:
    """Where x is kept, true for all but a share of `rate`, to 1/65,536."""
    if torch.compiler.is_compiling():
        return torch.as_tensor(_drawn(x, rate))
    if _memo.input is not x or _memo.rate != rate:
        _memo.input, _memo.rate, _memo.kept = x, rate, _draw(x, rate)
    return _memo.kept


def _draw(x: torch.Tensor, rate: float) -> torch.Tensor:
    """Sixteen random bits each, because torch's `bernoulli_` and its dropout take ten times as long on a CPU."""
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    drawn = bits.view(torch.int16)[: x.numel()].view(x.shape)
    return drawn >= round(rate * 65536) - 32768


# For compilers, which can't trace what has a memory: an operation that they take as it is, where a call that they can't
# look into would cut a layer into a dozen pieces. It bears no tag of randomness, so that those of one input become one,
# as above; for the backward pass only what is known to be cheap is computed again, and this is not.
_drawn = torch.library.custom_op("tiermesh::drawn", _draw, mutates_args=())
_drawn.register_fake(lambda x, rate: torch.empty_like(x, dtype=torch.bool))


def _only(rows_NI: torch.Tensor, kept_NI: torch.Tensor | None) -> torch.Tensor:
    """What is kept, 0 elsewhere."""
    if kept_NI is None:
        return rows_NI
    if rows_NI.dtype == torch.float32:
        return rows_NI * kept_NI
    # A product would make a mask in floating point of it first; of 16 bits all or none are let through.
    return (rows_NI.view(torch.int16) & kept_NI.to(torch.int16).neg_()).view(rows_NI.dtype)


class _LowRank(torch.autograd.Function):
    """x W + b + s (x ∘ kept) A^T B^T, W and b frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_NI: torch.Tensor,
        weight_IO: torch.Tensor,
        bias_O: torch.Tensor | None,
        down_RI: torch.Tensor,
        up_OR: torch.Tensor,
        kept_NI: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        down, up = down_RI.to(rows_NI.dtype), (up_OR * scale).to(rows_NI.dtype)
        inner_NR = _only(rows_NI, kept_NI) @ down.T
        outputs_NO = rows_NI @ weight_IO if bias_O is None else torch.addmm(bias_O, rows_NI, weight_IO)
        outputs_NO.addmm_(inner_NR, up.T)
        ctx.save_for_backward(rows_NI, weight_IO, down_RI, up_OR, kept_NI, inner_NR)
        ctx.scale = scale
        return outputs_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_outputs_NO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows_NI, weight_IO, down_RI, up_OR, kept_NI, inner_NR = ctx.saved_tensors
        down, up = down_RI.to(rows_NI.dtype), (up_OR * ctx.scale).to(rows_NI.dtype)
        by_inner_NR = by_outputs_NO @ up
        by_up_OR = (by_outputs_NO.T @ inner_NR).to(up_OR.dtype).mul_(ctx.scale)
        by_down_RI = (by_inner_NR.T @ _only(rows_NI, kept_NI)).to(down_RI.dtype)
        by_rows_NI = None
        if ctx.needs_input_grad[0]:
            by_rows_NI = by_outputs_NO @ weight_IO.T
            if kept_NI is None:
                by_rows_NI.addmm_(by_inner_NR, down)
            else:
                by_rows_NI.add_(_only(by_inner_NR @ down, kept_NI))
        return by_rows_NI, None, None, by_down_RI, by_up_OR, None, None
