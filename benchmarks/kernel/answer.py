"""What an engine gave, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. Times are seconds since it was asked for; `arrivals` has one for each piece that came.

    `tokens` is empty where an engine tells only text.
    """

    text: str
    tokens: tuple[int, ...]
    completion_tokens: int
    prompt_tokens: int
    arrivals: tuple[float, ...]

    @property
    def first_s(self) -> float:
        return self.arrivals[0]

    @property
    def last_s(self) -> float:
        return self.arrivals[-1]


class Engine(Protocol):
    """Something that answers, in processes of its own; idle, it leaves the cores to the others."""

    name: str

    async def start(self) -> None:
        """Give back once the model is loaded."""

    async def ask(self, prompts: Sequence[str], tokens: int) -> list[Answer]:
        """Answer all at the same time, greedily, each with at most this many tokens."""

    async def close(self) -> None:
        """End its processes and wait for them."""
