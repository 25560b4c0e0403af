"""What this node has told of its attempts, on its disk: ends are told until a coordinator has them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tiermesh.adapters.store import Store
from tiermesh.core.attempts import Checkpoint, Told
from tiermesh.daemon.told import Key, key_of, next_told, told_of, wire_of
from tiermesh.errors import StateUnwritable
from tiermesh.protocol.job_orders import AttemptTold, HeardReport
from tiermesh.types import Ballot

log = logging.getLogger(__name__)

KEPT_S = 24 * 3600.0
"""Ends are kept to be told to the next coordinator too, should the one that knew them never come back."""
KEPT_LIMIT = 1000
"""Of them, the newest."""


@dataclass(slots=True)
class _Kept:
    """What was told of an attempt last. `known_to` is the ballot of the coordinator that needs not hear it again."""

    told: Told
    at: float
    known_to: Ballot | None = None


class ToldLog:
    """Of all attempts but the one that runs. `open` before all else."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: dict[Key, _Kept] = {}

    async def open(self) -> None:
        """Read it. An attempt that ran when the daemon ended has stopped."""
        now = time.time()
        for row in await self._store.attempts():
            try:
                key, kept = _read(row)
            except (ValueError, KeyError, TypeError) as error:
                log.error("what was kept of an attempt can't be read: %s", error)
                continue
            if kept.told.state == "running":
                # Whatever it was at: it was no refusal, and the node may have a checkpoint of it.
                kept.told = next_told(kept.told, state="stopped", phase="", reason="its node ended")
            if kept.at < now - KEPT_S and kept.told.is_end:
                await self._forget(key)
            else:
                self._kept[key] = kept

    def told(self, key: Key) -> Told | None:
        """What was told last of an attempt that does not run."""
        kept = self._kept.get(key)
        return None if kept is None else kept.told

    def tell_again(self, key: Key) -> None:
        """Somebody does not know it."""
        if (kept := self._kept.get(key)) is not None:
            kept.known_to = None

    async def keep(self, key: Key, told: Told) -> None:
        """On the disk; to be told from now on, unless the attempt runs."""
        kept = _Kept(told, time.time())
        try:
            row = wire_of(key, told).model_dump(mode="json") | {"at": kept.at}
            await self._store.save_attempt(key[0], key[1][0], row)
        except StateUnwritable as error:
            log.error("job %s: that its attempt is %s could not be saved: %s", key[0], told.state, error)
        if told.state == "running":
            self._kept.pop(key, None)
            return
        self._kept[key] = kept
        for old in sorted(self._kept, key=lambda key: self._kept[key].at)[:-KEPT_LIMIT]:
            del self._kept[old]

    def copied(self, job: str, attempt: int, checkpoint: Checkpoint) -> None:
        """A checkpoint of this attempt is held by these nodes now."""
        for key, kept in self._kept.items():
            if (key[0], key[1][0]) == (job, attempt):
                kept.told, kept.known_to = next_told(kept.told, checkpoint=checkpoint), None

    def unknown_to(self, ballot: Ballot) -> list[AttemptTold]:
        """What the coordinator of this ballot is to hear."""
        return [wire_of(key, kept.told) for key, kept in self._kept.items() if kept.known_to != ballot]

    async def answered(self, said: Iterable[AttemptTold], heard: Iterable[HeardReport], ballot: Ballot) -> None:
        """The coordinator of this ballot has it on its disk."""
        sent = {key_of(each): each.told.get("seq") for each in said}
        for answer in heard:
            key = key_of(answer)
            kept = self._kept.get(key)
            if kept is None or kept.told.seq != sent.get(key):
                continue
            if answer.kept or answer.fenced:
                kept.known_to = ballot
            if answer.fenced and not kept.told.is_end:
                del self._kept[key]
                await self._forget(key)

    async def _forget(self, key: Key) -> None:
        await self._store.forget_attempt(key[0], key[1][0])


def _read(row: dict[str, Any]) -> tuple[Key, _Kept]:
    said = AttemptTold.model_validate({name: value for name, value in row.items() if name != "at"})
    return key_of(said), _Kept(told_of(said), float(row["at"]))
