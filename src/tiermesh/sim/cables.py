"""What a story does to the network: one cable, half of one, or all between two halves of the machines."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tiermesh.sim.network import Network


class Cables:
    """Of one story: `rng` chooses among the machines that `ids` gives at the time, `note` keeps its log."""

    def __init__(
        self, network: Network, rng: random.Random, ids: Callable[[], Sequence[str]], note: Callable[[str], None]
    ) -> None:
        self._network = network
        self._rng = rng
        self._ids = ids
        self._note = note

    def cut(self) -> None:
        """Between two machines."""
        self._cut(self._network.cut, "cut")

    def cut_one_way(self) -> None:
        """From one machine to another."""
        self._cut(self._network.cut_one_way, "cut one way")

    def split(self) -> None:
        """Any machines from all the others."""
        halves: list[list[str]] = [[], []]
        for machine in self._ids():
            self._rng.choice(halves).append(machine)
        self._note(f"split {halves}")
        self._network.split(halves)

    def heal(self) -> None:
        """All is whole again."""
        self._note("heal")
        self._network.heal()

    def _cut(self, cut: Callable[[str, str], None], name: str) -> None:
        if len(machines := self._ids()) > 1:
            one, other = self._rng.sample(machines, 2)
            self._note(f"{name} {one} {other}")
            cut(one, other)
