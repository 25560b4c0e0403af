"""Cross entropy over a large vocabulary, whose logits are never kept.

Some rows at a time, their logits are computed, and in the same pass the loss and its gradient, while they are still in
the cache. N rows that have a label, C of them a chunk, E width of a state, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad
from torch.utils.checkpoint import checkpoint

from tiermesh.kernel.rounding import spare

if TYPE_CHECKING:
    from tiermesh.kernel.training.data.batches import MicroBatch
    from tiermesh.kernel.training.models import Trainee

NO_LABEL = -100
"""Stands where nothing is to be predicted: prompts, padding, the last token of a document."""
CHUNK_ROWS = 128
"""Measured with 49,152 words on two cores: 64 rows make products too small, 512 leave the cache."""
ROWS_STEP = 32
"""Rows are filled up to a multiple of this where torch compiles for each number of them: the last chunk, of any length,
took 40 MB a step of a small model, until all lengths were seen."""


@dataclass(frozen=True, slots=True)
class Head:
    """The output layer: states to logits."""

    weight_VE: torch.Tensor
    bias_V: torch.Tensor | None = None

    @property
    def trained(self) -> bool:
        """Whether its weight wants a gradient."""
        return self.weight_VE.requires_grad


class Objective(Protocol):
    """What a run makes small: a sum over the targets of a micro-batch, to be divided by those of the whole step."""

    def summed(self, trainee: Trainee, batch: Any) -> torch.Tensor:
        """One number in fp32, with its gradient."""


class TokenLoss:
    """Each target token's -log p, times its weight."""

    def summed(self, trainee: Trainee, batch: MicroBatch) -> torch.Tensor:
        """Sum over the targets, in fp32."""
        states_BTE = trainee.states(batch.tokens_BT, batch.positions_BT)
        return summed_loss(states_BTE, trainee.head, batch.labels_BT, batch.weights_BT)


@dataclass(frozen=True, slots=True)
class OtherLoss:
    """A plugin's: `loss` gives a number for each of some rows' logits in fp32 and labels. Logits are computed twice."""

    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def summed(self, trainee: Trainee, batch: MicroBatch) -> torch.Tensor:
        """Sum over the targets, in fp32."""
        head = trainee.head
        states_BTE = trainee.states(batch.tokens_BT, batch.positions_BT)
        states_NE, labels_N, weights_N = labelled(states_BTE, batch.labels_BT, batch.weights_BT)
        total = torch.zeros((), device=states_NE.device)
        for first in range(0, len(labels_N), CHUNK_ROWS):
            part = slice(first, first + CHUNK_ROWS)
            weights_C = None if weights_N is None else weights_N[part]
            total = total + checkpoint(
                self._summed, states_NE[part], head, labels_N[part], weights_C, use_reentrant=False
            )
        return total

    def _summed(
        self, states_CE: torch.Tensor, head: Head, labels_C: torch.Tensor, weights_C: torch.Tensor | None
    ) -> torch.Tensor:
        bias_V = None if head.bias_V is None else head.bias_V.to(states_CE.dtype)
        logits_CV = linear(states_CE, head.weight_VE.to(states_CE.dtype), bias_V).float()
        losses_C = self.loss(logits_CV, labels_C)
        return losses_C.sum() if weights_C is None else losses_C.dot(weights_C)


def labelled(
    states_BTE: torch.Tensor, labels_BT: torch.Tensor, weights_BT: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """States, labels and weights of the positions that have a label: only these are worth their logits."""
    rows_N = (labels_BT.reshape(-1) != NO_LABEL).nonzero().squeeze(1)
    states_NE = states_BTE.reshape(-1, states_BTE.shape[-1])
    labels_N = labels_BT.reshape(-1)[rows_N]
    weights_N = None if weights_BT is None else weights_BT.reshape(-1)[rows_N]
    return (states_NE if len(rows_N) == len(states_NE) else states_NE[rows_N]), labels_N, weights_N


def summed_loss(
    states_BTE: torch.Tensor, head: Head, labels_BT: torch.Tensor, weights_BT: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum over the labels of weight times -log p(label), one number in fp32. The gradient is computed with it."""
    states_NE, labels_N, weights_N = labelled(states_BTE, labels_BT, weights_BT)
    if more := _spare_rows(states_NE):
        weights_N = pad(torch.ones_like(labels_N, dtype=torch.float32) if weights_N is None else weights_N, (0, more))
        states_NE, labels_N = pad(states_NE, (0, 0, 0, more)), pad(labels_N, (0, more))
    total: torch.Tensor = _SummedLoss.apply(  # type: ignore[no-untyped-call]
        states_NE, head.weight_VE, head.bias_V, labels_N, weights_N
    )
    return total


def log_probabilities(states_BTE: torch.Tensor, head: Head, labels_BT: torch.Tensor) -> torch.Tensor:
    """Log-probability of every label, 0 where there is none, [B, T] in fp32; each may get a gradient of its own."""
    states_NE, labels_N, _ = labelled(states_BTE, labels_BT)
    count = len(labels_N)
    if more := _spare_rows(states_NE):
        states_NE, labels_N = pad(states_NE, (0, 0, 0, more)), pad(labels_N, (0, more))
    losses_N: torch.Tensor = _RowLosses.apply(  # type: ignore[no-untyped-call]
        states_NE, head.weight_VE, head.bias_V, labels_N
    )[:count]
    whole = torch.zeros(labels_BT.numel(), device=labels_BT.device)
    return whole.masked_scatter((labels_BT != NO_LABEL).reshape(-1), -losses_N).view(labels_BT.shape)


def _spare_rows(states_NE: torch.Tensor) -> int:
    """How many rows without a label of their own to add."""
    return spare(len(states_NE), ROWS_STEP, states_NE.dtype, states_NE.device)


class _SummedLoss(torch.autograd.Function):
    """The gradient of a weighted sum is known but for one factor, so one pass over the chunks computes it all."""

    @staticmethod
    def forward(
        ctx: Any,
        states_NE: torch.Tensor,
        weight_VE: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        weights_N: torch.Tensor | None,
    ) -> torch.Tensor:
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        gradients = _Gradients(states_NE, weight_VE, bias_V, wanted)
        total = torch.zeros((), device=states_NE.device)
        with _as_given(states_NE):
            for chunk in _chunks(states_NE, weight_VE, bias_V, labels_N):
                weights_C = None if weights_N is None else weights_N[chunk.rows]
                losses_C = chunk.losses()
                total += losses_C.sum() if weights_C is None else losses_C.dot(weights_C)
                if any(wanted):
                    gradients.add(chunk, weights_C)
        ctx.gradients = gradients
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return (*gradients.times(factor), None, None)


class _RowLosses(torch.autograd.Function):
    """A row's loss depends on its own state alone, so its gradient may be scaled later; a trained head's can't be,
    and is computed again when the factors are known."""

    @staticmethod
    def forward(
        ctx: Any, states_NE: torch.Tensor, weight_VE: torch.Tensor, bias_V: torch.Tensor | None, labels_N: torch.Tensor
    ) -> torch.Tensor:
        ctx.again = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        gradients = _Gradients(states_NE, weight_VE, bias_V, (ctx.needs_input_grad[0] and not ctx.again, False, False))
        losses_N = torch.empty(len(labels_N), device=states_NE.device)
        with _as_given(states_NE):
            for chunk in _chunks(states_NE, weight_VE, bias_V, labels_N):
                losses_N[chunk.rows] = chunk.losses()
                if any(gradients.wanted):
                    gradients.add(chunk, None)
        ctx.gradients = gradients
        ctx.save_for_backward(*((states_NE, weight_VE, bias_V, labels_N) if ctx.again else ()))
        return losses_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factors_N: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if not ctx.again:
            return (*gradients.times(factors_N[:, None]), None)
        states_NE, weight_VE, bias_V, labels_N = ctx.saved_tensors
        gradients = _Gradients(states_NE, weight_VE, bias_V, tuple(ctx.needs_input_grad[:3]))
        for chunk in _chunks(states_NE, weight_VE, bias_V, labels_N):
            chunk.losses()
            gradients.add(chunk, factors_N[chunk.rows])
        return (*gradients.whole(), None)


class _Chunk:
    """Some rows: from logits to losses to the gradient of the logits, all in one buffer."""

    def __init__(self, rows: slice, states_CE: torch.Tensor, labels_C: torch.Tensor, logits_CV: torch.Tensor) -> None:
        self.rows, self.states_CE = rows, states_CE
        self._labels_C1 = labels_C[:, None]
        self._numbers_CV = logits_CV
        self._sums_C = torch.empty(0)

    def losses(self) -> torch.Tensor:
        """-log p(label) in fp32; leaves exp(logit - highest) in the buffer."""
        highest_C1 = self._numbers_CV.amax(dim=1, keepdim=True)
        self._numbers_CV.sub_(highest_C1)
        chosen_C = self._numbers_CV.gather(1, self._labels_C1).squeeze(1)
        self._sums_C = self._numbers_CV.exp_().sum(dim=1)
        return self._sums_C.log() - chosen_C

    def gradient(self, weights_C: torch.Tensor | None) -> torch.Tensor:
        """Of the losses, each times its weight, by the logits; call after `losses`."""
        factors_C = self._sums_C.reciprocal() if weights_C is None else weights_C / self._sums_C
        self._numbers_CV.mul_(factors_C[:, None])
        ones_C = torch.ones_like(self._sums_C) if weights_C is None else weights_C.float()
        return self._numbers_CV.scatter_add_(1, self._labels_C1, -ones_C[:, None])


class _Gradients:
    """By states, weight and bias, those that are wanted, gathered over the chunks; the weight's and bias's in fp32."""

    def __init__(
        self,
        states_NE: torch.Tensor,
        weight_VE: torch.Tensor,
        bias_V: torch.Tensor | None,
        wanted: tuple[bool, bool, bool],
    ) -> None:
        self.wanted = wanted
        self._product_VE = weight_VE.detach().to(states_NE.dtype)
        self._states_NE = torch.empty_like(states_NE) if wanted[0] else None
        self._weight_VE = torch.zeros_like(weight_VE, dtype=torch.float32) if wanted[1] else None
        self._bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if wanted[2] and bias_V is not None else None

    def add(self, chunk: _Chunk, weights_C: torch.Tensor | None) -> None:
        """Take the gradient of a chunk's weighted losses."""
        by_logits_CV = chunk.gradient(weights_C)
        if self._bias_V is not None:
            self._bias_V += by_logits_CV.sum(dim=0)
        by_logits_CV = by_logits_CV.to(chunk.states_CE.dtype)
        if self._states_NE is not None:
            torch.mm(by_logits_CV, self._product_VE, out=self._states_NE[chunk.rows])
        if self._weight_VE is not None:
            self._weight_VE += by_logits_CV.T @ chunk.states_CE

    def times(self, factor: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """All of it times the gradient that came from above."""
        scaled = [None if one is None else one.mul_(factor) for one in self.whole()]
        return scaled[0], scaled[1], scaled[2]

    def whole(self) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        return self._states_NE, self._weight_VE, self._bias_V


def _chunks(
    states_NE: torch.Tensor, weight_VE: torch.Tensor, bias_V: torch.Tensor | None, labels_N: torch.Tensor
) -> Iterator[_Chunk]:
    """Logits in fp32 of some rows after others. A chunk's buffers are the next one's."""
    weight_EV = weight_VE.detach().to(states_NE.dtype).T
    rows, vocabulary = min(CHUNK_ROWS, len(labels_N)), weight_VE.shape[0]
    product_CV = states_NE.new_empty(rows, vocabulary)
    wide = (
        product_CV if states_NE.dtype == torch.float32 else product_CV.new_empty(rows, vocabulary, dtype=torch.float32)
    )
    for first in range(0, len(labels_N), CHUNK_ROWS):
        part = slice(first, min(first + CHUNK_ROWS, len(labels_N)))
        states_CE, count = states_NE[part].detach(), part.stop - part.start
        torch.mm(states_CE, weight_EV, out=product_CV[:count])
        if wide is not product_CV:
            wide[:count].copy_(product_CV[:count])
        logits_CV = wide[:count]
        if bias_V is not None:
            logits_CV += bias_V.detach()
        yield _Chunk(part, states_CE, labels_N[part], logits_CV)


def _as_given(states_NE: torch.Tensor) -> torch.autocast:
    """Products in the states' own precision, whatever the caller's autocast says."""
    return torch.autocast(states_NE.device.type, enabled=False)
