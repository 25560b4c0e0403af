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
        kept_NI = torch.empty(rows_NI.shape, dtype=torch.bool, device=x.device).bernoulli_(1.0 - rate) if rate else None
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
        inner_NR = (rows_NI if kept_NI is None else rows_NI * kept_NI) @ down.T
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
        by_down_RI = (by_inner_NR.T @ (rows_NI if kept_NI is None else rows_NI * kept_NI)).to(down_RI.dtype)
        by_rows_NI = None
        if ctx.needs_input_grad[0]:
            by_rows_NI = by_outputs_NO @ weight_IO.T
            if kept_NI is None:
                by_rows_NI.addmm_(by_inner_NR, down)
            else:
                by_rows_NI.add_((by_inner_NR @ down).mul_(kept_NI))
        return by_rows_NI, None, None, by_down_RI, by_up_OR, None, None
