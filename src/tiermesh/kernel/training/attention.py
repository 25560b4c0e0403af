"""Attention of packed rows, one document after another.

transformers keeps documents apart with a mask, and then computes, and in the backward pass computes again, what the
mask throws away; torch's attention on CPUs is nearly twice as slow with a mask as without besides. Here each document
is a causal attention of its own: less to compute the shorter the documents are, nothing to keep, and nothing that could
leak. B rows, H heads, G of them with keys of their own, T tokens, D width of a head; N documents of one width W.

torch compiles its attention for each length that it meets, and keeps what it compiled for ever (brgemm kernels of
oneDNN): documents as long as they happen to be cost 1.5 MB each, 50 MB a step, until every length was seen. So a
document is as wide as the next multiple of `STEP`: to tokens behind its end no token before it pays attention, and a
gradient of zero comes from them. Documents of one width are computed at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

IMPLEMENTATION = "tiermesh_training"
"""By which name transformers' models find it."""

STEP = 32
"""Tokens: attention of documents of 200 tokens in the mean computes a sixth more than it must, and 16 lengths are met
in rows of 512."""


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
    key_BGTD: torch.Tensor,
    value_BGTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_ids: torch.Tensor | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it; what goes on where a cache ends goes transformers' own way."""
    if position_ids is None or query_BHTD.shape[2] != key_BGTD.shape[2]:
        told: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query_BHTD, key_BGTD, value_BGTD, attention_mask, dropout=dropout, scaling=scaling, **settings
        )
        return told
    assert attention_mask is None
    if torch.is_autocast_enabled(query_BHTD.device.type):
        # As torch's own attention does: rotated queries and keys are wider than values then.
        dtype = torch.get_autocast_dtype(query_BHTD.device.type)
        query_BHTD, key_BGTD, value_BGTD = (one.to(dtype) for one in (query_BHTD, key_BGTD, value_BGTD))
    groups = _groups(position_ids, len(query_BHTD))
    scale = query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
    if dropout == 0.0:
        outputs_BTHD = _Documents.apply(query_BHTD, key_BGTD, value_BGTD, groups, scale)  # type: ignore[no-untyped-call]
        return outputs_BTHD, None
    flat = [one.transpose(1, 2).flatten(0, 1) for one in (query_BHTD, key_BGTD, value_BGTD)]
    outputs = torch.empty_like(flat[0])
    for group in groups:
        read = _read(flat, group)
        found_NHWD = scaled_dot_product_attention(*read, dropout_p=dropout, is_causal=True, scale=scale)
        outputs = outputs.index_copy(0, group.tokens, group.kept(found_NHWD))
    return outputs.view(query_BHTD.transpose(1, 2).shape), None


@dataclass(frozen=True, slots=True)
class _Group:
    """Documents of one width, of a batch whose tokens stand in one line."""

    places_NW: torch.Tensor
    """Of their tokens; behind the end of a document its last one again, whose score is a number as good as any."""
    within: torch.Tensor
    """Which of these places, in one line, are no repetition."""
    tokens: torch.Tensor
    """Their places in the batch."""

    def kept(self, found_NHWD: torch.Tensor) -> torch.Tensor:
        """What is no repetition, [tokens, H, D]."""
        return found_NHWD.transpose(1, 2).flatten(0, 1)[self.within]

    def laid_out(self, flat: torch.Tensor) -> torch.Tensor:
        """The documents' part of [B T, H, ...] as [N, H, W, ...]."""
        return flat[self.places_NW].transpose(1, 2)

    def zeroed(self, flat: torch.Tensor) -> torch.Tensor:
        """The same, 0 for repetitions."""
        laid = flat.new_zeros(self.places_NW.numel(), *flat.shape[1:])
        laid[self.within] = flat[self.tokens]
        return laid.view(*self.places_NW.shape, *flat.shape[1:]).transpose(1, 2)


class _Documents(torch.autograd.Function):
    """Attention without dropout. What is kept for the backward pass is as large for any lengths."""

    @staticmethod
    def forward(
        ctx: Any,
        query_BHTD: torch.Tensor,
        key_BGTD: torch.Tensor,
        value_BGTD: torch.Tensor,
        groups: list[_Group],
        scale: float,
    ) -> torch.Tensor:
        rows, heads, tokens, width = query_BHTD.shape
        flat = [one.transpose(1, 2).flatten(0, 1) for one in (query_BHTD, key_BGTD, value_BGTD)]
        outputs = query_BHTD.new_empty(rows * tokens, heads, width)
        sums = query_BHTD.new_empty(rows * tokens, heads, dtype=torch.float32)
        for group in groups:
            found_NHWD, sums_NHW = _FORWARD(*_read(flat, group), 0.0, True, scale=scale)
            outputs[group.tokens] = group.kept(found_NHWD)
            sums[group.tokens] = group.kept(sums_NHW)
        ctx.save_for_backward(query_BHTD, key_BGTD, value_BGTD, outputs, sums)
        ctx.groups, ctx.scale = groups, scale
        return outputs.view(rows, tokens, heads, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_outputs_BTHD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *given, outputs, sums = ctx.saved_tensors
        flat = [one.transpose(1, 2).flatten(0, 1) for one in given]
        by_outputs = by_outputs_BTHD.flatten(0, 1)
        found = [torch.empty_like(one) for one in flat]
        for group in ctx.groups:
            before = (group.zeroed(by_outputs), *_read(flat, group), group.laid_out(outputs), group.laid_out(sums))
            for whole, part_NHWD in zip(found, _BACKWARD(*before, 0.0, True, scale=ctx.scale), strict=True):
                # Heads that share a key add up.
                documents, _, *size = part_NHWD.shape
                whole[group.tokens] = group.kept(part_NHWD.view(documents, whole.shape[1], -1, *size).sum(2))
        rows, tokens = by_outputs_BTHD.shape[:2]
        return *(one.view(rows, tokens, *one.shape[1:]).transpose(1, 2) for one in found), None, None


_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default  # noqa: SLF001
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default  # noqa: SLF001
"""What `scaled_dot_product_attention` comes to on a CPU."""


def _read(flat: list[torch.Tensor], group: _Group) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of the documents, [N, H, W, D], with a key and a value for each head."""
    query_NHWD, key_NGWD, value_NGWD = (group.laid_out(one) for one in flat)
    shared = query_NHWD.shape[1] // key_NGWD.shape[1]
    return query_NHWD, repeat_kv(key_NGWD, shared), repeat_kv(value_NGWD, shared)


class _Memo:
    """All layers of a model are given the same tensor of positions; it is looked at once."""

    positions: torch.Tensor | None = None
    groups: tuple[_Group, ...] = ()


_memo = _Memo()


def _groups(positions_BT: torch.Tensor, rows: int) -> tuple[_Group, ...]:
    """The documents of a batch, by their widths. Padding, where each position is 0, is taken as one document, because
    nobody reads what comes of it."""
    if _memo.positions is not positions_BT:
        lengths = [_lengths_of(row) for row in positions_BT.expand(rows, -1).tolist()]
        _memo.positions, _memo.groups = positions_BT, tuple(_grouped(lengths, positions_BT.shape[-1]))
    return _memo.groups


def _grouped(lengths: list[list[int]], tokens: int) -> Iterator[_Group]:
    of_width: dict[int, list[tuple[int, int]]] = {}
    for row, in_row in enumerate(lengths):
        begin = row * tokens
        for length in in_row:
            of_width.setdefault(-(-length // STEP) * STEP, []).append((begin, length))
            begin += length
    for width, documents in of_width.items():
        begins_N1, lengths_N1 = torch.tensor(documents).T.unsqueeze(2)
        steps_1W = torch.arange(width)[None]
        places_NW = begins_N1 + steps_1W.minimum(lengths_N1 - 1)
        within = (steps_1W < lengths_N1).flatten().nonzero().squeeze(1)
        yield _Group(places_NW, within, places_NW.flatten()[within])


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
