"""From logits to the next token. A choice depends on the logits, the seed, the position and the tokens before it alone.

The order is: what the grammar forbids, logit_bias, penalties, temperature, top_k, top_p, min_p. Selection is done on
values rather than ids, in numpy, whose sort and partition are many times as fast on a CPU as a sort of ids or torch's;
exponentials and sums over the vocabulary are torch's, in double precision.

Legend: V vocabulary, K the tokens that are left to choose from, T distinct tokens that came before.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from tiermesh.kernel.inference.sequence import Choice, Grammar, Sampling

Weights = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]

UNIFORM_BITS = 52
"""Of a float64 between 0 and 1, so that half a step away from either end it is still exact."""
GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""The distance between the states of SplitMix64."""
LIKELIEST = 1024
"""Usually top_p ends among this many tokens, and they are found several times as fast as a vocabulary is sorted."""


class NotFinite(Exception):
    """The model computed no usable probabilities, or its grammar forbade every token."""

    def __init__(self, position: int) -> None:
        super().__init__(f"the model's output at position {position} is not a number")
        self.position = position


class Chooser:
    """Chooses the tokens of one sequence, and remembers what the penalties need of those that came."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int]) -> None:
        self._sampling = sampling
        self._seen = dict.fromkeys(prompt if sampling.repetition_penalty != 1 else ())
        self._output: Counter[int] = Counter()

    def choose(self, logits_V: torch.Tensor, position: int, grammar: Grammar | None = None) -> Choice:
        """The token at `position`, counted from the prompt's start. Logits are fp32 and may be overwritten.

        Neither the chooser nor the grammar has accepted it yet. Raises `NotFinite`.
        """
        logits_V = logits_V.cpu()
        _greedy(logits_V, position)
        wanted = self._sampling.logprobs
        raw_V = logits_V if wanted is None else logits_V.clone()
        if grammar is not None:
            grammar.mask(logits_V)
        self._adjust(logits_V)
        token = sample(logits_V, self._sampling, position)
        return Choice(token) if wanted is None else _reported(token, raw_V, wanted)

    def accept(self, token: int) -> None:
        """This token came: chosen just now, or in the part of the answer that is replayed."""
        self._output[token] += 1
        if self._sampling.repetition_penalty != 1:
            self._seen[token] = None

    def _adjust(self, logits_V: torch.Tensor) -> None:
        """Bias, then the repetition penalty over all that came, then the other two over the answer's own tokens."""
        sampling = self._sampling
        if sampling.logit_bias:
            logits_V[list(sampling.logit_bias)] += torch.tensor(list(sampling.logit_bias.values()))
        if self._seen:
            seen_T = torch.tensor(list(self._seen))
            logits_T = logits_V[seen_T]
            penalty = sampling.repetition_penalty
            logits_V[seen_T] = torch.where(logits_T > 0, logits_T / penalty, logits_T * penalty)
        if self._output and (sampling.presence_penalty or sampling.frequency_penalty):
            counts_T = torch.tensor(list(self._output.values()), dtype=logits_V.dtype)
            penalties_T = sampling.presence_penalty + sampling.frequency_penalty * counts_T
            logits_V[torch.tensor(list(self._output))] -= penalties_T


def sample(logits_V: torch.Tensor, sampling: Sampling, position: int) -> int:
    """Draw from final logits, on the CPU. Temperature 0 is greedy, the lowest id wins ties.

    Every token draws an exponential number, keyed by (seed, position, token); the one whose number divided by its
    probability is least comes (the same as adding Gumbel noise to logits). So a sequence that is resumed elsewhere from
    its tokens goes on as it would have, and logits that were rounded otherwise change a choice only if two tokens were
    as good as level: with the inverse of the cumulative distribution, every small difference adds up over a vocabulary.
    """
    greedy = _greedy(logits_V, position)
    if sampling.temperature == 0:
        return greedy
    # Relative to the likeliest, whose weight is 1: no exponential overflows.
    weights_V = (logits_V.double() - float(logits_V[greedy])).div_(sampling.temperature).exp_().numpy()
    if sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0:
        return int((weights_V / exponentials(sampling.seed, position, np.arange(len(weights_V)))).argmax())
    tokens_K = _tokens(weights_V, _kept(weights_V, sampling))
    return int(tokens_K[(weights_V[tokens_K] / exponentials(sampling.seed, position, tokens_K)).argmax()])


def exponentials(seed: int, position: int, tokens_K: Tokens) -> Weights:
    """Numbers from the exponential distribution, the same on every machine and in every version of every library.

    SplitMix64 (Steele et al. 2014): that many numbers of the generator which (seed, position) starts.
    """
    start = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    bits_K = np.uint64(int.from_bytes(start, "big")) + (tokens_K.astype(np.uint64) + np.uint64(1)) * GOLDEN_GAMMA
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits_K = (bits_K ^ (bits_K >> np.uint64(shift))) * np.uint64(factor)
    bits_K ^= bits_K >> np.uint64(31)
    uniform_K = ((bits_K >> np.uint64(64 - UNIFORM_BITS)) + 0.5) / (1 << UNIFORM_BITS)
    return -np.log(uniform_K)


def _greedy(logits_V: torch.Tensor, position: int) -> int:
    """The likeliest token, the lowest id of equals. NaN counts as the largest, so one look finds all that is wrong."""
    token = int(logits_V.numpy().argmax())
    if not math.isfinite(logits_V[token]):
        raise NotFinite(position)
    return token


def _kept(weights_V: Weights, sampling: Sampling) -> Weights:
    """The weights that top_k, top_p and min_p leave, falling. The likeliest is 1 and always stays."""
    if sampling.top_k:
        weights_K = _largest(weights_V, sampling.top_k)
        if sampling.top_p < 1:
            weights_K = _until(weights_K, sampling.top_p * float(weights_K.sum()))
    elif sampling.top_p < 1:
        share = sampling.top_p * float(weights_V.sum())
        weights_K = _largest(weights_V, LIKELIEST)
        weights_K = _until(weights_K if weights_K.sum() >= share else _falling(weights_V), share)
    else:
        weights_K = _falling(weights_V[weights_V >= sampling.min_p])
    return weights_K[weights_K >= sampling.min_p]


def _largest(values_V: Weights, count: int) -> Weights:
    return _falling(np.partition(values_V, -count)[-count:] if count < len(values_V) else values_V)


def _falling(values_K: Weights) -> Weights:
    return np.sort(values_K)[::-1]


def _until(falling_K: Weights, share: float) -> Weights:
    """The first of these, the one with which they hold `share` included."""
    return falling_K[: int(np.searchsorted(falling_K.cumsum(), share)) + 1]


def _tokens(values_V: Weights, falling_K: Weights) -> Tokens:
    """Whose values these largest ones are; of those that equal the least, the lowest."""
    above = np.flatnonzero(values_V > falling_K[-1])
    level = np.flatnonzero(values_V == falling_K[-1])
    return np.concatenate((above, level[: len(falling_K) - len(above)]))


def _reported(token: int, raw_V: torch.Tensor, alternatives: int) -> Choice:
    logprobs_V = torch.log_softmax(raw_V.double(), dim=-1).numpy()
    likeliest = _tokens(logprobs_V, _largest(logprobs_V, alternatives)).tolist() if alternatives else []
    likeliest.sort(key=lambda other: (-logprobs_V[other], other))
    return Choice(token, float(logprobs_V[token]), tuple((other, float(logprobs_V[other])) for other in likeliest))
