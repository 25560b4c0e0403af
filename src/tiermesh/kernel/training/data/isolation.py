"""Does a model keep the documents of a packed row apart? Measured on the model itself, because no name tells it."""

from __future__ import annotations

import math
from typing import Any

import torch

LENGTHS = (7, 11)
"""Tokens of the two documents: different, so that they do not end at one place when they are exchanged."""


def leakage(model: Any) -> float:
    """How far another document before it moves a document's logits; 0.0 where packing is exact, in any precision.

    The same shapes are computed twice and only the other document's tokens differ, so rounding is the same both times.
    Infinite for a model that takes no positions. Randomness and the model's mode are left as they were.
    """
    vocabulary = model.config.get_text_config().vocab_size
    device = next(model.parameters()).device
    first, second = LENGTHS
    tokens_BT = torch.arange(1, 2 * (first + second) + 1, device=device).reshape(2, -1) % vocabulary
    others_BT = tokens_BT.clone()
    others_BT[:, :first] = (others_BT[:, :first] * 7 + 3) % vocabulary
    positions_BT = torch.cat([torch.arange(length, device=device) for length in LENGTHS]).repeat(2, 1)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            seen, again = (
                model(input_ids=one_BT, position_ids=positions_BT, use_cache=False).logits[:, first:]
                for one_BT in (tokens_BT, others_BT)
            )
    except TypeError:
        return math.inf
    finally:
        model.train(training)
    return float((seen.float() - again.float()).abs().max())
