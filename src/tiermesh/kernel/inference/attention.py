"""Attention over a packed row of tokens from many sequences; it takes the place of transformers' own.

Every model whose attention goes through transformers' interface can be computed so: its other layers see one row of T
tokens and do not care whose they are.

Legend: T packed tokens, H query heads, K key/value heads, G = H / K, D size of a head, N sequences, n tokens of one
sequence, g = G x n, L keys.

What torch would compile for every new length of a prompt (3 MB each) is rounded up: tokens and queries that nobody
reads, and keys that are hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from tiermesh.kernel.inference.cache import Cache
from tiermesh.kernel.inference.schedule import group_neighbours
from tiermesh.kernel.rounding import spare

IMPLEMENTATION = "tiermesh"
"""Its name in transformers' registry."""

STEP = 64
"""Of queries and of keys. After a thousand prompts 55 MB are kept for attention then, and no more later; with 32 it is
96 MB, with 128 22, but a short turn would compute ten times what it must."""
ROWS_STEP = 16
"""Of packed tokens: what the processor's units for matrices (AMX) compute at once."""
EXACT_ROWS = 32
"""So many next tokens come without rounding."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of one sequence to be computed: those from position `start` on. `adapter` None: by the base model."""

    slot: int
    start: int
    tokens: Sequence[int]
    adapter: str | None = None

    @property
    def length(self) -> int:
        """Tokens of the sequence once these are computed."""
        return self.start + len(self.tokens)


class Batch(Protocol):
    """What one call of the model computes."""

    def attend(
        self, layer: int, query_HTD: torch.Tensor, key_KTD: torch.Tensor, value_KTD: torch.Tensor, rule: Rule
    ) -> torch.Tensor:
        """The attention's output, of shape [T, H, D]."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a layer says about its attention; `window` None: all that came before."""

    scale: float
    window: int | None


_CURRENT: ContextVar[Batch] = ContextVar("batch")


@contextmanager
def attending(batch: Batch) -> Iterator[None]:
    """While open, the models of this thread compute `batch`."""
    token = _CURRENT.set(batch)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def attention(
    module: Any,
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    attention_mask: object,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface; B is 1. Raises `NotImplementedError` for what would be computed wrongly."""
    _refuse_unknown(attention_mask, others)
    rule = Rule(scaling if scaling is not None else query_BHTD.shape[-1] ** -0.5, sliding_window)
    output_THD = _CURRENT.get().attend(module.layer_idx, query_BHTD[0], key_BKTD[0], value_BKTD[0], rule)
    return output_THD[None], None


AttentionInterface.register(IMPLEMENTATION, attention)


class PackedBatch:
    """Spans of several sequences, at most one of each, over the cache."""

    def __init__(self, spans: Sequence[Span], cache: Cache, device: torch.device) -> None:
        single = sorted((span for span in spans if len(span.tokens) == 1), key=lambda span: span.slot)
        self.spans = [*single, *(span for span in spans if len(span.tokens) > 1)]
        """In the order in which they are packed."""
        self._cache = cache
        tokens = [token for span in self.spans for token in span.tokens]
        places = [(span.slot, position) for span in self.spans for position in range(span.start, span.length)]
        positions = [position for _, position in places]
        rows = [slot * cache.size.capacity + position for slot, position in places]
        self.count = len(tokens)
        """Of packed tokens; those behind them nobody reads."""
        self._spare = spare(self.count, ROWS_STEP, cache.dtype, device) if self.count > EXACT_ROWS else 0
        behind = [0] * self._spare
        packed = torch.tensor([tokens + behind, positions + behind, rows + behind], device=device)
        self.tokens_1T, self.positions_1T, self._rows_T = packed[0:1], packed[1:2], packed[2, : self.count]
        self._parts = [*_neighbours(single), *_alone(self.spans, first=len(single))]
        self._masks: dict[tuple[int, int | None], torch.Tensor | None] = {}

    def last_tokens(self) -> list[int]:
        """Where in the packed row each span's last token is."""
        return [end - 1 for end in accumulate(len(span.tokens) for span in self.spans)]

    def adapter_rows(self) -> dict[str, torch.Tensor]:
        """Which places of the packed row belong to which adapter, ascending."""
        owners = [span.adapter for span in self.spans for _ in span.tokens]
        names = dict.fromkeys(owner for owner in owners if owner is not None)
        device = self._rows_T.device
        return {
            name: torch.tensor([at for at, owner in enumerate(owners) if owner == name], device=device)
            for name in names
        }

    def attend(
        self, layer: int, query_HTD: torch.Tensor, key_KTD: torch.Tensor, value_KTD: torch.Tensor, rule: Rule
    ) -> torch.Tensor:
        """Write the new keys and values, then attend to all that a sequence has so far."""
        query_HTD, key_KTD, value_KTD = (one[:, : self.count] for one in (query_HTD, key_KTD, value_KTD))
        self._cache.write(layer, self._rows_T, key_KTD.transpose(0, 1), value_KTD.transpose(0, 1))
        query_KGTD = query_HTD.view(key_KTD.shape[0], -1, *query_HTD.shape[1:])
        outputs = [self._attend(index, part, layer, query_KGTD, rule) for index, part in enumerate(self._parts)]
        if self._spare:
            outputs.append(outputs[0].new_zeros(self._spare, *outputs[0].shape[1:]))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend(self, index: int, part: Part, layer: int, query_KGTD: torch.Tensor, rule: Rule) -> torch.Tensor:
        length = _rounded(part.length, query_KGTD) if part.start is not None else part.length
        keys_NKLD, values_NKLD = self._cache.read(layer, part.slots, min(length, self._cache.size.capacity))
        mask = self._mask(index, part, rule.window, query_KGTD, keys_NKLD.shape[2])
        part_KGTD = query_KGTD[:, :, part.first : part.first + part.tokens]
        return _attend(part, part_KGTD, keys_NKLD, values_NKLD, mask, rule.scale)

    def _mask(
        self, index: int, part: Part, window: int | None, query_KGTD: torch.Tensor, keys: int
    ) -> torch.Tensor | None:
        """Made once a step, not once a layer."""
        if (index, window) not in self._masks:
            self._masks[index, window] = _mask(part, window, query_KGTD, groups=query_KGTD.shape[1], keys=keys)
        return self._masks[index, window]


@dataclass(frozen=True, slots=True)
class Part:
    """Of a packed row: what one call of the attention computes.

    Either the next token of each of some sequences with adjacent slots (`start` is None), or some tokens of one
    sequence from position `start` on. `lengths`: tokens of each sequence.
    """

    slots: range
    first: int
    tokens: int
    lengths: tuple[int, ...]
    start: int | None

    @property
    def length(self) -> int:
        """Keys that are read: as many as the longest sequence has."""
        return max(self.lengths)


def _neighbours(single: Sequence[Span]) -> list[Part]:
    slots, lengths = [span.slot for span in single], [span.length for span in single]
    return [
        Part(
            range(slots[group.start], slots[group.start] + len(group)),
            group.start,
            len(group),
            tuple(lengths[group.start : group.stop]),
            None,
        )
        for group in group_neighbours(slots, lengths)
    ]


def _alone(spans: Sequence[Span], *, first: int) -> list[Part]:
    parts, at = [], first
    for span in spans[first:]:
        parts.append(Part(range(span.slot, span.slot + 1), at, len(span.tokens), (span.length,), span.start))
        at += len(span.tokens)
    return parts


def _attend(
    part: Part,
    query_KGTD: torch.Tensor,
    keys_NKLD: torch.Tensor,
    values_NKLD: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """The output for the part's own tokens, of shape [T, H, D]."""
    # Heads that share keys are computed as if they were as many tokens: no key is copied for them.
    if part.start is None:
        query_NKGD = query_KGTD.permute(2, 0, 1, 3)
        output_NKGD = scaled_dot_product_attention(query_NKGD, keys_NKLD, values_NKLD, attn_mask=mask, scale=scale)
        return output_NKGD.flatten(1, 2)
    query_1KgD = query_KGTD.flatten(1, 2)[None]
    queries = query_1KgD.shape[2]
    query_1KgD = _padded(query_1KgD)
    output_1KgD = scaled_dot_product_attention(query_1KgD, keys_NKLD, values_NKLD, attn_mask=mask, scale=scale)
    return output_1KgD[0, :, :queries].reshape(query_KGTD.shape).permute(2, 0, 1, 3).flatten(1, 2)


def _rounded(count: int, like: torch.Tensor) -> int:
    """How many queries or keys to compute for these."""
    return count + spare(count, STEP, like.dtype, like.device)


def _padded(queries: torch.Tensor) -> torch.Tensor:
    """With rows of zeros behind the last one ([..., g, any]), as many as rounding asks for."""
    more = _rounded(queries.shape[-2], queries) - queries.shape[-2]
    return pad(queries, (0, 0, 0, more)) if more else queries


def _mask(part: Part, window: int | None, like: torch.Tensor, *, groups: int, keys: int) -> torch.Tensor | None:
    """What is added to the scores, of shape [N, 1, 1, L] or [1, 1, g, L] with g rounded; None where everything may be
    seen."""
    device = like.device
    if part.start is None:
        if min(part.lengths) == part.length and (window is None or part.length <= window):
            return None
        lasts_N1 = torch.tensor(part.lengths, device=device)[:, None] - 1
    else:
        lasts_N1 = torch.arange(part.start, part.start + part.tokens, device=device)[:, None]
    keys_1L = torch.arange(keys, device=device)[None]
    hidden_NL = keys_1L > lasts_N1
    if window is not None:
        hidden_NL |= keys_1L <= lasts_N1 - window
    mask_NL = torch.zeros(hidden_NL.shape, dtype=like.dtype, device=device).masked_fill_(hidden_NL, -math.inf)
    if part.start is None:
        return mask_NL[:, None, None]
    return _padded(mask_NL.repeat(groups, 1))[None, None]


class WholeSequence:
    """A few tokens from the first on, without a cache: to learn what a model's layers need and compute."""

    def __init__(self) -> None:
        self.shapes: dict[int, tuple[int, int]] = {}
        """Of each layer that was computed: K and D."""
        self.rules: dict[int, Rule] = {}

    def attend(
        self, layer: int, query_HTD: torch.Tensor, key_KTD: torch.Tensor, value_KTD: torch.Tensor, rule: Rule
    ) -> torch.Tensor:
        """Every token sees itself and those before it. Raises `NotImplementedError` for what the cache can't hold."""
        if key_KTD.shape != value_KTD.shape:
            raise NotImplementedError("its keys and values have different sizes, which this kernel does not store")
        self.shapes[layer] = (key_KTD.shape[0], key_KTD.shape[2])
        self.rules[layer] = rule
        query_KGTD = query_HTD.view(key_KTD.shape[0], -1, *query_HTD.shape[1:])
        groups, tokens = query_KGTD.shape[1:3]
        whole = Part(range(1), 0, tokens, (tokens,), 0)
        mask = _mask(whole, rule.window, query_KGTD, groups=groups, keys=tokens)
        return _attend(whole, query_KGTD, key_KTD[None], value_KTD[None], mask, rule.scale)


_MEANINGLESS = frozenset({"dropout", "is_causal", "position_ids", "use_cache", "cache_position", "output_attentions"})
"""What layers also pass and what changes nothing here."""


def _refuse_unknown(mask: object, others: dict[str, object]) -> None:
    """A layer that asks for more (a soft cap, sinks, a bias) would be computed wrongly."""
    if mask is not None:  # transformers makes none for an implementation that is not its own.
        raise NotImplementedError("it makes a mask of its own, which this kernel does not apply")
    for name, value in others.items():
        if name not in _MEANINGLESS and value is not None and value is not False:
            raise NotImplementedError(f"its attention asks for {name}, which this kernel does not compute")
