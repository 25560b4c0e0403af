"""One request on its way through the generator, and what comes out of it. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy and needs no seed."""

    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True, slots=True)
class Text:
    """The next piece of the answer, cut at a character boundary; empty while the first token has none to show."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete. `completion_tokens` counts every token that was chosen, the one that ended it too."""

    reason: FinishReason
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The generator could not go on."""

    message: str


Event = Text | Finished | Failed


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and how to continue it. `emit` is called on the generator's thread, last with Finished or Failed."""

    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    stops: tuple[str, ...]
    emit: Callable[[Event], None]
    cancelled: bool = False
    """Set by whoever asked, from any thread; nothing is emitted after the token that is now being computed."""
