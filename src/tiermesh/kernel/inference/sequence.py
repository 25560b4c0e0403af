"""One request on its way through the generator, and what comes out of it. No torch at run time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy and needs no seed; the other defaults change nothing.

    `top_k` 0 keeps all tokens. `logit_bias` is added to the logits of the tokens it names. `logprobs` None: not wanted;
    n: that of the chosen token, and the n likeliest ones beside it.
    """

    temperature: float
    seed: int
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A token that was chosen. Logarithms of probabilities are the model's own, before anything was applied to them."""

    token: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and their logarithms, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """Comes first when a sequence was resumed: the text that its tokens had shown. Its client has it already."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """The next token and the text that it completes, which ends at a character's end and may be empty."""

    text: str
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete. `completion_tokens` counts every token that was chosen, the one that ended it too.

    `choices` are those that showed nothing: the token that ended the answer.
    """

    reason: FinishReason
    completion_tokens: int
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The generator could not go on."""

    message: str


Event = Replayed | Text | Finished | Failed


class Grammar(Protocol):
    """What one answer must look like. Used on the generator's thread alone."""

    def mask(self, logits_V: torch.Tensor) -> None:
        """Make the logits of all tokens that may not come next -inf, in place."""

    def accept(self, token: int) -> None:
        """This token came."""


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and how to continue it. `emit` is called on the generator's thread, last with Finished or Failed."""

    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    """Of the whole answer, `resumed` included."""
    stops: tuple[str, ...]
    emit: Callable[[Event], None]
    resumed: tuple[int, ...] = ()
    """The beginning of the answer, where another worker was cut off. It is computed like the prompt."""
    adapter: str | None = None
    """None: the base model."""
    grammar: Grammar | None = None
    cancelled: bool = field(default=False, init=False)
    """Set by whoever asked, from any thread; nothing is emitted after the token that is now being computed."""
    cached_tokens: int = field(default=0, init=False)
    """Tokens of the prompt that needed no computing, once the first event was emitted."""

    def begins_like(self, other: Sequence) -> bool:
        """Do both have the same keys and values, up to their answers?"""
        return self.adapter == other.adapter and self.prompt == other.prompt
