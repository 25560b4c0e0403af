"""The adapters of one model, and which of them its worker knows: given at its start, told of later, or refused."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from contextlib import suppress
from urllib.parse import quote

from tiermesh.adapters.lora_folder import LocalAdapter
from tiermesh.errors import EngineFailed, InvalidInput

log = logging.getLogger(__name__)

Tell = Callable[[str, str, Mapping[str, object] | None], Awaitable[None]]
"""Method, path, body, to the worker. Raises `InvalidInput` for what it refuses, `EngineFailed` when it is gone."""


class Attached:
    """Of the model called `model`, whose worker is reached by `tell`."""

    def __init__(self, model: str, adapters: Iterable[LocalAdapter], tell: Tell) -> None:
        self._model = model
        self._all = tuple(adapters)
        self._tell = tell
        self._given: tuple[LocalAdapter, ...] = ()
        """Those that the process was started with, or told of before it was ready."""
        self._refused: frozenset[str] = frozenset()
        """Names of those that the last worker did not take."""
        self._changing = asyncio.Lock()
        """Held while a running worker is told."""

    def __contains__(self, name: object) -> bool:
        return any(adapter.name == name for adapter in self._all)

    @property
    def served(self) -> list[LocalAdapter]:
        """All but those that the worker refused: the model is served without them."""
        return [adapter for adapter in self._all if adapter.name not in self._refused]

    def arguments(self) -> list[str]:
        """For a worker that is about to be started, which knows nothing yet."""
        self._given = self._all
        return [f"--adapter={adapter.name}={adapter.path}" for adapter in self._all]

    async def add(self, adapter: LocalAdapter, *, is_ready: Callable[[], bool]) -> None:
        """One more, told to a worker that is ready. Raises `InvalidInput` when it refuses, and then there is none."""
        async with self._changing:
            if is_ready():
                try:
                    await self._bring(adapter)
                except EngineFailed as error:
                    log.info("%s is told of the adapter %s at its next start: %s", self._model, adapter.name, error)
            self._all = (*self._all, adapter)
            self._refused -= {adapter.name}

    async def drop(self, name: str, *, is_ready: Callable[[], bool]) -> None:
        """One less; a worker that is ready forgets it once nobody is answered by it."""
        async with self._changing:
            self._all = tuple(adapter for adapter in self._all if adapter.name != name)
            if is_ready():
                try:
                    await self._take_away(name)
                except (EngineFailed, InvalidInput) as error:
                    log.info("%s keeps the adapter %s until its next start: %s", self._model, name, error)

    async def caught_up(self, taken: Set[str], worker_log: object) -> bool:
        """A worker has loaded its model, and of what it was given it has `taken` these.

        Tell it of what came and went meanwhile; gives whether it knows all now.
        """
        self._refused = frozenset(adapter.name for adapter in self._all if adapter in self._given) - taken
        for name in sorted(self._refused):
            log.warning("%s does not take the adapter %s; its log says why: %s", self._model, name, worker_log)
        gone = [adapter for adapter in self._given if adapter not in self._all]
        come = [adapter for adapter in self._all if adapter not in self._given]
        try:
            for adapter in gone:
                with suppress(InvalidInput):  # one that it had refused
                    await self._take_away(adapter.name)
            for adapter in come:
                try:
                    await self._bring(adapter)
                except InvalidInput as error:
                    self._refused |= {adapter.name}
                    log.warning("%s does not take the adapter %s: %s", self._model, adapter.name, error)
        except EngineFailed:
            return False
        self._given = tuple(adapter for adapter in (*self._given, *come) if adapter not in gone)
        return set(self._given) == set(self._all)

    async def _bring(self, adapter: LocalAdapter) -> None:
        await self._tell("POST", "/adapters", {"name": adapter.name, "path": str(adapter.path)})

    async def _take_away(self, name: str) -> None:
        await self._tell("DELETE", f"/adapters/{quote(name, safe='')}", None)
