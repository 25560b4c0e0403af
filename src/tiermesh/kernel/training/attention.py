"""Attention of packed rows, one document after another.

transformers keeps documents apart with a mask, and then computes, and in the backward pass computes again, what the
mask throws away; torch's attention on CPUs is nearly twice as slow with a mask as without besides. Here each document
is a causal attention of its own: less to compute the shorter the documents are, nothing to keep, and nothing that could
leak. B rows, H heads, T tokens, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

IMPLEMENTATION = "tiermesh_training"
"""By which name transformers' models find it."""


def serves(config: Any) -> bool:
    """Only what looks at the whole text before a token: no windows, no scores that are bent or biased."""
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    bent = getattr(config, "attn_logit_softcapping", None)
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return kinds == {"full_attention"} and bent is None and not windowed


def attend(
    module: Any,
    query_BHTD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_ids: torch.Tensor | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it; rows of one document each go transformers' own way."""
    lengths = None if position_ids is None or query_BHTD.shape[2] == 1 else _lengths(position_ids, len(query_BHTD))
    if lengths is None:
        told: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query_BHTD, key_BHTD, value_BHTD, attention_mask, dropout=dropout, scaling=scaling, **settings
        )
        return told
    assert attention_mask is None
    groups = getattr(module, "num_key_value_groups", 1)
    key_BHTD, value_BHTD = repeat_kv(key_BHTD, groups), repeat_kv(value_BHTD, groups)
    rows = []
    for index, row in enumerate(zip(query_BHTD.unbind(), key_BHTD.unbind(), value_BHTD.unbind(), strict=True)):
        query, key, value = (torch.split(one, lengths[index], dim=1) for one in row)
        documents = [
            scaled_dot_product_attention(q[None], k[None], v[None], dropout_p=dropout, is_causal=True, scale=scaling)
            for q, k, v in zip(query, key, value, strict=True)
        ]
        rows.append(torch.cat(documents, dim=2).transpose(1, 2))
    return torch.cat(rows), None


class _Memo:
    """All layers of a model are given the same tensor of positions; it is looked at once."""

    positions: torch.Tensor | None = None
    lengths: list[list[int]] | None = None


_memo = _Memo()


def _lengths(positions_BT: torch.Tensor, rows: int) -> list[list[int]] | None:
    """Of the documents of each row; None when every row is one. Padding, where each position is 0, is taken as one
    document, because nobody reads what comes of it."""
    if _memo.positions is not positions_BT:
        expanded_BT = positions_BT.expand(rows, -1)
        _memo.positions, _memo.lengths = positions_BT, [_lengths_of(row) for row in expanded_BT.tolist()]
    lengths = _memo.lengths
    assert lengths is not None
    return lengths if any(len(row) > 1 for row in lengths) else None


def _lengths_of(positions_T: list[int]) -> list[int]:
    starts = [0]
    for at in range(1, len(positions_T)):
        begins = positions_T[at] != positions_T[at - 1] + 1
        # Of two documents the first of which is one token long, the second goes on.
        padding = positions_T[at] == positions_T[at - 1] == 0 and positions_T[at + 1 : at + 2] != [1]
        if begins and not padding:
            starts.append(at)
    ends = [*starts[1:], len(positions_T)]
    return [end - start for start, end in zip(starts, ends, strict=True)]


def _no_mask(*args: Any, **settings: Any) -> None:
    """For transformers, which would make a mask of the positions."""
    del args, settings


AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)
