"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290): the better of two answers made likelier,
measured against the model as it was. P pairs, 2P rows: the chosen answers, then the rejected ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

from tiermesh.kernel.training.loss import log_probabilities

if TYPE_CHECKING:
    from tiermesh.kernel.training.data.batches import PairBatch
    from tiermesh.kernel.training.models import Trainee


@dataclass(frozen=True, slots=True)
class Preferences:
    """Losses of pairs, and how much likelier than before the better answers became."""

    losses_P: torch.Tensor
    margins_P: torch.Tensor


@dataclass(frozen=True, slots=True)
class PairLoss:
    """DPO's loss; `beta` is what straying from the model as it was costs."""

    beta: float

    def summed(self, trainee: Trainee, batch: PairBatch) -> torch.Tensor:
        """Sum over the pairs, in fp32."""
        losses_P = self.preferences(trainee, batch).losses_P
        weights_P = _weights(batch)
        return losses_P.sum() if weights_P is None else losses_P.dot(weights_P)

    def preferences(self, trainee: Trainee, batch: PairBatch) -> Preferences:
        """Each pair's loss."""
        before = self._before(trainee, batch)
        states_BTE = trainee.states(*_rows(batch))
        now = log_probabilities(states_BTE, trainee.head, _labels(batch)).sum(dim=1)
        chosen_P, rejected_P = (now - before).chunk(2)
        margins_P = self.beta * (chosen_P - rejected_P)
        return Preferences(-logsigmoid(margins_P), margins_P.detach())

    def _before(self, trainee: Trainee, batch: PairBatch) -> torch.Tensor:
        with trainee.as_before() as head:
            states_BTE = trainee.states_before(*_rows(batch))
            return log_probabilities(states_BTE, head, _labels(batch)).sum(dim=1)


def _rows(batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and positions of both answers, in one batch."""
    both = (batch.chosen, batch.rejected)
    return torch.cat([one.tokens_BT for one in both]), torch.cat([one.positions_BT for one in both])


def _weights(batch: PairBatch) -> torch.Tensor | None:
    """A pair's weight is that of each of its targets."""
    weights_PT = batch.chosen.weights_BT
    return None if weights_PT is None else weights_PT.amax(dim=1)


def _labels(batch: PairBatch) -> torch.Tensor:
    return torch.cat([batch.chosen.labels_BT, batch.rejected.labels_BT])
