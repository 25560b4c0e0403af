"""A model's first forward, of a few tokens: what it shows of the model's layers, and that it can be computed at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tiermesh.kernel.inference.attention import Rule, WholeSequence, attending
from tiermesh.kernel.inference.cache import Shapes

TOKENS = 7
"""Taken evenly from the whole vocabulary: at its ends are those that no text of the training held, which mean nothing
to the model and amplify every rounding."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What went in, and what came out. `shapes` and `rules` are those of the layers that attended."""

    tokens_1T: torch.Tensor
    positions_1T: torch.Tensor
    shapes: Shapes
    rules: Mapping[int, Rule]
    logits_TV: torch.Tensor


def run_trial(model: Any) -> Trial:
    """Touches every weight. Raises `NotImplementedError` for an attention that is not computed here."""
    device = model.device
    positions_1T = torch.arange(TOKENS, device=device)[None]
    tokens_1T = (positions_1T + 1) * model.config.get_text_config().vocab_size // (TOKENS + 1)
    seen = WholeSequence()
    with attending(seen), torch.inference_mode():
        logits_TV = model(input_ids=tokens_1T, position_ids=positions_1T, use_cache=False).logits[0].float()
    return Trial(tokens_1T, positions_1T, seen.shapes, seen.rules, logits_TV)
