"""Requests that were running when a worker died: whoever was there twice is not let in a third time.

A death has many witnesses and one culprit. A request that has seen one death is a suspect: suspects run one at a time
(the caller sees to that), so that the second death names the culprit alone, and an answer clears who was innocent.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping

from tiermesh.errors import PoisonedRequest

DEATHS = 2
"""One may be chance: memory ran out, somebody killed the process."""
KEPT = 1024
"""Requests remembered; a worker holds some dozens at a time. The one longest unseen is forgotten first."""
FORGET_S = 3600.0
"""Who killed a worker an hour ago may try again: memory may have been short then."""

ADDED = frozenset({"seed", "return_token_ids", "resume_token_ids"})
"""What a gateway adds to a request: another value each time, and for each part of one answer."""


class Suspects:
    """What is known against requests, told by their whole bodies but for what was added on the way.

    `now` is monotonic, in seconds.
    """

    def __init__(self) -> None:
        self._deaths: OrderedDict[str, tuple[set[object], float]] = OrderedDict()

    def note(self, now: float, body: Mapping[str, object], death: object) -> None:
        """`body` was running at this death; the same body counts once a death, however often it was there."""
        key = _digest(body)
        deaths, _ = self._deaths.pop(key, (set(), now))
        self._deaths[key] = (deaths | {death}, now)
        if len(self._deaths) > KEPT:
            self._deaths.popitem(last=False)

    def check(self, now: float, body: Mapping[str, object]) -> bool:
        """Is this a suspect? Raises `PoisonedRequest` when it is known to be worse."""
        while self._deaths and now - next(iter(self._deaths.values()))[1] > FORGET_S:
            self._deaths.popitem(last=False)
        if not self._deaths:
            return False  # the usual case costs no hashing
        deaths, _ = self._deaths.get(_digest(body), (set(), now))
        if len(deaths) >= DEATHS:
            raise PoisonedRequest(
                f"workers died {len(deaths)} times while they computed this very request, so it is refused for "
                f"{FORGET_S / 60:.0f} minutes; change it, or look into the log of the node that served it"
            )
        return bool(deaths)

    def clear(self, body: Mapping[str, object]) -> None:
        """It was answered: what is known against it was somebody else's doing."""
        if self._deaths:
            self._deaths.pop(_digest(body), None)


def _digest(body: Mapping[str, object]) -> str:
    told = {key: value for key, value in body.items() if key not in ADDED}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
