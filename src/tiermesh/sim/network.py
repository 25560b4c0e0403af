"""What lies between simulated machines: latency, loss, duplication, reordering, and cuts in either direction."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How well messages travel. Latencies are log-normal, in seconds; shares are of all messages."""

    median: float
    sigma: float = 0.3
    loss: float = 0.0
    duplication: float = 0.0


WIRED = Weather(median=0.0004)
WIFI = Weather(median=0.004, sigma=0.9)
ROUGH_WIRED = Weather(median=0.0006, sigma=1.0, loss=0.05, duplication=0.05)
ROUGH_WIFI = Weather(median=0.015, sigma=1.2, loss=0.12, duplication=0.05)
"""Latencies are drawn one by one, so that a wide distribution reorders."""


@dataclass(slots=True)
class Network:
    """Who can reach whom, and how fast."""

    rng: random.Random
    weather: Weather
    blocked: set[tuple[str, str]] = field(default_factory=set)
    """(from, to): nothing passes, silently."""

    def passes(self, sender: str, receiver: str) -> bool:
        """Is there a way from `sender` to `receiver`?"""
        return (sender, receiver) not in self.blocked

    def is_open(self, one: str, other: str) -> bool:
        """Is there a way both ways, so that a connection can be made?"""
        return self.passes(one, other) and self.passes(other, one)

    def latency(self) -> float:
        """One way, for one message."""
        return self.weather.median * self.rng.lognormvariate(0.0, self.weather.sigma)

    def copies(self) -> int:
        """How often a message arrives."""
        weather = self.weather
        if weather.loss and self.rng.random() < weather.loss:
            return 0
        return 2 if weather.duplication and self.rng.random() < weather.duplication else 1

    def cut(self, one: str, other: str) -> None:
        """Nothing passes between them."""
        self.blocked |= {(one, other), (other, one)}

    def cut_one_way(self, sender: str, receiver: str) -> None:
        """Nothing passes from `sender` to `receiver`."""
        self.blocked.add((sender, receiver))

    def split(self, groups: list[list[str]]) -> None:
        """Only members of one group reach one another."""
        self.blocked.clear()
        for group in groups:
            for one in group:
                for other_group in groups:
                    if other_group is not group:
                        self.blocked.update((one, other) for other in other_group)

    def heal(self) -> None:
        """Everybody reaches everybody."""
        self.blocked.clear()
