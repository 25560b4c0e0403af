"""Linear layers computed the way this processor likes best: fewer and larger products, over weights in its own order.

A step of generation is some hundred products of few rows, each too small to keep the cores busy. Layers that read the
same input are therefore computed as one. oneDNN, which torch computes with on a CPU, rearranges a plain bf16 weight for
every product; stored in its own arrangement a weight is only read. torch's compiler does both when it freezes a model.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import nn

log = logging.getLogger(__name__)

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one module that are given the same input, by the names that nearly all architectures use."""
TRIAL_ROWS = (1, 8)
"""A lone answer and several at once: products of few rows are what generation consists of."""
PACKED_FOR_ROWS = 8
"""oneDNN's arrangement may depend on the rows it is meant for; it works for any number."""
TRIALS = 2

Layer = tuple[nn.Module, str, nn.Linear]
"""A linear layer, and where it hangs: parent and name."""


class Joined(nn.Module):
    """Several linear layers of one input as one."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [layer.out_features for layer in layers]
        self.whole = nn.Linear(layers[0].in_features, sum(self.sizes), bias=False, device="meta")
        self.whole.weight = _concatenated([layer.weight for layer in layers])
        if layers[0].bias is not None:
            self.whole.bias = _concatenated([layer.bias for layer in layers])
        self._input: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}

    def output(self, part: int, rows: torch.Tensor) -> torch.Tensor:
        """What layer `part` makes of `rows`, computed for all parts when the first is asked for.

        Each result is given away once, because whoever gets it may write into it.
        """
        if self._input is not rows or part not in self._outputs:
            self._input, self._outputs = rows, dict(enumerate(self.whole(rows).split(self.sizes, dim=-1)))
        return self._outputs.pop(part)


class Sibling(nn.Module):
    """One of the layers that were joined, where the model expects it."""

    def __init__(self, joined: Joined, part: int, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._output = joined.output
        if part == 0:
            self.joined = joined  # as a child, once, so that whoever walks over the modules finds it
        self.family = (joined,)  # in a tuple it is no child
        self.first = sum(joined.sizes[:part])
        """Of the joined outputs, the first that is this layer's."""
        self._part = part

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        return self._output(self._part, rows)


class PackedLinear(nn.Module):
    """Takes the place of a `nn.Linear`, whose weight it does not keep."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), PACKED_FOR_ROWS)  # noqa: SLF001

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        linear = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 - what torch's own compiler calls
        output: torch.Tensor = linear(rows, self._packed, self.bias, "none", [], "")
        return output


def join(model: nn.Module) -> int:
    """Compute layers of one input as one; gives how many joined layers there are."""
    families = [
        (parent, names)
        for parent in model.modules()
        for names in SIBLINGS
        if all(type(getattr(parent, name, None)) is nn.Linear for name in names)
    ]
    return sum(_join(parent, names) for parent, names in families)


def pack(model: nn.Module) -> int:
    """Store the weights of a CPU model's linear layers anew where that is faster; gives how many were.

    Layers of one shape are judged together, by computing all of them: one alone would be measured in a warm cache.
    """
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return 0
    shapes: defaultdict[torch.Size, list[Layer]] = defaultdict(list)
    for layer in _linears(model):
        shapes[layer[2].weight.shape].append(layer)
    return sum(_pack_if_faster(layers) for layers in shapes.values())


def _linears(model: nn.Module) -> Iterator[Layer]:
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                yield parent, name, child


def _join(parent: nn.Module, names: Sequence[str]) -> bool:
    layers = [getattr(parent, name) for name in names]
    if len({layer.in_features for layer in layers}) != 1 or len({layer.bias is None for layer in layers}) != 1:
        return False
    joined = Joined(layers)
    for part, (name, layer) in enumerate(zip(names, layers, strict=True)):
        setattr(parent, name, Sibling(joined, part, layer))
    return True


def _concatenated(parts: Sequence[torch.Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.cat(list(parts)), requires_grad=False)


def _pack_if_faster(layers: Sequence[Layer]) -> int:
    plain = [linear for _, _, linear in layers]
    try:
        packed = [PackedLinear(linear) for linear in plain]
        if not (_agree(plain[0], packed[0]) and _duration_s(packed, plain[0]) < _duration_s(plain, plain[0])):
            return 0
    except RuntimeError as error:
        log.info("this torch does not pack %s: %s", tuple(plain[0].weight.shape), error)
        return 0
    for (parent, name, _), replacement in zip(layers, packed, strict=True):
        setattr(parent, name, replacement)
    return len(layers)


def _agree(plain: nn.Linear, packed: PackedLinear) -> bool:
    """They round differently, and must differ by no more than that."""
    rows = _rows(plain, max(TRIAL_ROWS))
    expected, got = plain(rows).float(), packed(rows).float()
    limit = expected.abs().max() * torch.finfo(plain.weight.dtype).eps * 4
    return bool((expected - got).abs().max() <= limit)


def _duration_s(layers: Sequence[nn.Module], like: nn.Linear) -> float:
    return min(_trial(layers, like) for _ in range(TRIALS))


def _trial(layers: Sequence[nn.Module], like: nn.Linear) -> float:
    inputs = [_rows(like, rows) for rows in TRIAL_ROWS]
    started = time.perf_counter()
    for rows in inputs:
        for layer in layers:
            layer(rows)
    return time.perf_counter() - started


def _rows(like: nn.Linear, count: int) -> torch.Tensor:
    """Always the same, between -1 and 1."""
    values = torch.arange(count * like.in_features, dtype=torch.float32).mul_(12.9898).sin_()
    return values.view(count, like.in_features).to(like.weight.dtype)
