"""The layers of Llama and its nearest relatives in as few operations as they need, over the same weights.

At one token a sequence a layer is small, and what costs is the number of operations: transformers' own takes some
fifty, this one twenty, which makes a step a fifth shorter. Whoever is not recognised, or computes something else in a
trial, is left to transformers. Adapters stand beside the layers that are computed here, as beside transformers' own.

Legend: T packed tokens, E width of the model, H query heads, K key/value heads, D size of a head, V vocabulary,
N tokens whose logits are wanted, R of them the highest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import embedding, rms_norm, silu

from tiermesh.kernel.inference.attention import Batch, Rule, WholeSequence
from tiermesh.kernel.inference.linear import Sibling
from tiermesh.kernel.inference.trial import Trial

RELATIVES = frozenset({"llama", "mistral", "qwen2"})
"""`model_type` of those whose layers differ in nothing but sizes, biases and windows."""
MAX_TRIAL_ERROR = 0.1
"""Relative, of the median token: bf16 rounds to a few hundredths and at single tokens by far more, transformers' own
layers no less than these; another formula is off by about 1 at all of them."""

TOLD_APART = 64
"""The highest logits of a token, which nearly all that is said is chosen from."""

Linear = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer multiplies by. The first of each pair computes several of the model's own layers at once."""

    index: int
    attention_norm_E: torch.Tensor
    query_key_value: Linear
    attention_output: Linear
    mlp_norm_E: torch.Tensor
    gate_up: Linear
    down: Linear
    rule: Rule


class Decoder:
    """All layers of one model. `rules` are what its own layers say about their attention. Made by `recognise`."""

    def __init__(self, model: Any, rules: Mapping[int, Rule]) -> None:
        base, config = model.model, model.config
        attention = base.layers[0].self_attn
        self._head = attention.head_dim
        self._queries = attention.q_proj.out_features // self._head
        self._keys = attention.k_proj.out_features // self._head
        self._base, self._rules = base, rules
        self.renew()
        self._embedding = base.embed_tokens.weight
        self._rotary = base.rotary_emb
        self._norm_E = base.norm.weight
        self._logits: Linear = model.lm_head
        tied = getattr(config, "tie_word_embeddings", False) and getattr(model.lm_head, "bias", None) is None
        self._rounds = tied and self._embedding.dtype == torch.bfloat16
        self._eps = config.rms_norm_eps
        half = torch.ones(self._head // 2, dtype=self._embedding.dtype, device=self._embedding.device)
        self._signs_D = torch.cat((-half, half))

    def renew(self) -> None:
        """Look at the model's layers again: some have adapters beside them now."""
        self._layers = [_layer(layer, self._rules[layer.self_attn.layer_idx]) for layer in self._base.layers]

    def logits(
        self, batch: Batch, tokens_1T: torch.Tensor, positions_1T: torch.Tensor, wanted: Sequence[int]
    ) -> torch.Tensor:
        """The logits after those of the packed tokens that are `wanted`, [len(wanted), V]."""
        rows_TE = embedding(tokens_1T[0], self._embedding)
        cos_1TD, sin_1TD = self._rotary(rows_TE, positions_1T)
        cos_T1D, sin_T1D = cos_1TD[0, :, None], (sin_1TD[0] * self._signs_D)[:, None]
        for layer in self._layers:
            rows_TE = rows_TE + self._attend(layer, batch, rows_TE, cos_T1D, sin_T1D)
            gate, up = layer.gate_up(self._normed(rows_TE, layer.mlp_norm_E)).chunk(2, dim=-1)
            rows_TE = rows_TE + layer.down(silu(gate) * up)
        ends_NE = self._normed(rows_TE[list(wanted)], self._norm_E)
        return self._told_apart(ends_NE, self._logits(ends_NE)) if self._rounds else self._logits(ends_NE)

    def _told_apart(self, ends_NE: torch.Tensor, logits_NV: torch.Tensor) -> torch.Tensor:
        """The highest logits again, in fp32. In bf16 those between 16 and 32 are multiples of 1/8, and the first of
        several equal ones would be the answer, whichever the model prefers."""
        logits_NV = logits_NV.float()
        best_NR = logits_NV.topk(min(TOLD_APART, logits_NV.shape[1])).indices
        found_NR = (embedding(best_NR, self._embedding).float() @ ends_NE.float()[:, :, None])[:, :, 0]
        return logits_NV.scatter(1, best_NR, found_NR)

    def _attend(
        self, layer: Layer, batch: Batch, rows_TE: torch.Tensor, cos_T1D: torch.Tensor, sin_T1D: torch.Tensor
    ) -> torch.Tensor:
        joined = layer.query_key_value(self._normed(rows_TE, layer.attention_norm_E))
        heads_THD = joined.view(len(rows_TE), -1, self._head)
        turning_THD = heads_THD[:, : self._queries + self._keys]
        # Rotary position embedding (Su et al. 2021): each half of a head is turned with the other.
        turned_THD = torch.addcmul(turning_THD * cos_T1D, turning_THD.roll(self._head // 2, dims=-1), sin_T1D)
        output_THD = batch.attend(
            layer.index,
            turned_THD[:, : self._queries].transpose(0, 1),
            turned_THD[:, self._queries :].transpose(0, 1),
            heads_THD[:, self._queries + self._keys :].transpose(0, 1),
            layer.rule,
        )
        return layer.attention_output(output_THD.flatten(1))

    def _normed(self, rows_TE: torch.Tensor, weight_E: torch.Tensor) -> torch.Tensor:
        return rms_norm(rows_TE, weight_E.shape, weight_E, self._eps)


def recognise(model: Any, trial: Trial) -> Decoder | None:
    """The decoder of a loaded model whose layers have been joined; None when it does not compute what the trial saw.

    Adapters come afterwards, if any do.
    """
    if model.config.model_type not in RELATIVES or model.config.hidden_act != "silu":
        return None
    if not all(isinstance(part, Sibling) for layer in model.model.layers for part in _joined(layer)):
        return None
    decoder = Decoder(model, trial.rules)
    everyone = range(len(trial.logits_TV))
    with torch.inference_mode():
        got_TV = decoder.logits(WholeSequence(), trial.tokens_1T, trial.positions_1T, everyone).float()
    error_T = (got_TV - trial.logits_TV).norm(dim=1) / trial.logits_TV.norm(dim=1)
    return decoder if float(error_T.median()) <= MAX_TRIAL_ERROR else None


def _joined(layer: Any) -> tuple[Any, ...]:
    return layer.self_attn.q_proj, layer.self_attn.k_proj, layer.mlp.gate_proj, layer.mlp.up_proj


def _layer(layer: Any, rule: Rule) -> Layer:
    return Layer(
        index=layer.self_attn.layer_idx,
        attention_norm_E=layer.input_layernorm.weight,
        query_key_value=layer.self_attn.q_proj.joined.whole,
        attention_output=layer.self_attn.o_proj,
        mlp_norm_E=layer.post_attention_layernorm.weight,
        gate_up=layer.mlp.gate_proj.joined.whole,
        down=layer.mlp.down_proj,
        rule=rule,
    )
