"""Which of the kernel's models are in memory: as many as the limit allows, the longest unused one leaves first."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterable, Sequence

import psutil

from tiermesh.adapters.engines.memory import Budget, gigabytes
from tiermesh.adapters.engines.served_model import ServedModel
from tiermesh.adapters.model_source import LocalModel
from tiermesh.errors import ModelSourceFailed, Unavailable

log = logging.getLogger(__name__)

ROOM_WAIT_S = 10.0
"""A request whose model has no room waits this long for another model to fall idle; then it is sent elsewhere."""
RETRY_AFTER_S = 5.0
"""An answer of a small model takes about this long, and then there may be room."""


class Residents:
    """Loads models on demand. `threads` None shares the cores between them."""

    def __init__(self, budget: Budget, *, threads: int | None) -> None:
        self._budget = budget
        self._threads = threads
        self._models: list[ServedModel] = []
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    def check(self, local: LocalModel) -> None:
        """Raises `ModelSourceFailed` for a model that is too large even when it is alone."""
        need = self._budget.need_bytes(local)
        if need > self._budget.limit_bytes:
            raise ModelSourceFailed(
                f"{local.name} needs about {gigabytes(need)} of memory and memory_limit is "
                f"{gigabytes(self._budget.limit_bytes)}; raise the limit or choose a smaller model"
            )

    def add(self, model: ServedModel) -> None:
        """From now on it may be admitted."""
        self._models.append(model)

    async def remove(self, model: ServedModel) -> None:
        """It is admitted no more; one that is on its way is given up."""
        self._models.remove(model)
        if (load := self._loads.pop(model.wanted.name, None)) is not None:
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)
        self._changed.set()

    def changed(self) -> None:
        """A model may have fallen idle."""
        self._changed.set()

    async def admit(self, model: ServedModel) -> None:
        """Have `model` in memory, or on its way there; it stays while it has requests.

        All who ask for one model share one load, so that whoever waits for another never waits for them in turn. Raises
        `Unavailable` when no room comes free in time.
        """
        if model.resident:
            return
        load = self._loads.get(model.wanted.name)
        if load is None or load.done():
            load = self._loads[model.wanted.name] = asyncio.create_task(self._load(model))
            load.add_done_callback(_note_failure)
        await asyncio.shield(load)

    async def close(self) -> None:
        """Load nothing any more. May be called twice."""
        for load in self._loads.values():
            load.cancel()
        await asyncio.gather(*self._loads.values(), return_exceptions=True)

    async def _load(self, model: ServedModel) -> None:
        deadline = time.monotonic() + ROOM_WAIT_S
        async with self._turn:
            await self._make_room(model, deadline)
            log.info("loading %s", model.local.name)
            await model.load_up(
                reserved_bytes=self._budget.need_bytes(model.local),
                cache_bytes=self._budget.cache_bytes(model.local),
                threads=self._share_of_cores(),
                precision=self._budget.precision,
            )

    async def _make_room(self, model: ServedModel, deadline: float) -> None:
        need = self._budget.need_bytes(model.local)
        while sum(each.reserved_bytes for each in self._models) + need > self._budget.limit_bytes:
            self._changed.clear()
            victim = longest_unused(self._models)
            if victim is not None:
                log.info("unloading %s: %s needs the room", victim.local.name, model.local.name)
                await victim.unload()
            else:
                await self._wait(model, deadline)

    async def _wait(self, model: ServedModel, deadline: float) -> None:
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._changed.wait()
        except TimeoutError:
            busy = ", ".join(each.local.name for each in self._models if each.resident)
            raise Unavailable(
                f"there is no room for {model.local.name} while {busy} is in use (memory_limit: "
                f"{gigabytes(self._budget.limit_bytes)})",
                retry_after_s=RETRY_AFTER_S,
            ) from None

    def _share_of_cores(self) -> int | None:
        """None leaves a model that is alone all cores; later ones get as many as if all had been loaded at once."""
        if self._threads is not None:
            return self._threads
        residents = 1 + sum(each.resident for each in self._models)
        return None if residents == 1 else max(1, cores() // residents)


def _note_failure(load: asyncio.Task[None]) -> None:
    """Those who waited for it are told; they may all have left."""
    if not load.cancelled() and (error := load.exception()) is not None:
        log.info("not loaded: %s", error)


def longest_unused(models: Iterable[ServedModel]) -> ServedModel | None:
    """The model to unload next: never one that is pinned or in use."""
    free: Sequence[ServedModel] = [m for m in models if m.resident and m.idle and not m.wanted.pinned]
    return min(free, key=lambda model: model.last_used, default=None)


def cores() -> int:
    """That this process may run on; hyper-threads of one core do not help matrix products."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)
