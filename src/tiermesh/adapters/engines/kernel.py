"""The built-in engine: our own worker processes, one a model, started when they are needed, reached over Unix sockets.

This module never imports torch. A model that is not on this machine is looked for again every few seconds, so that
`mesh model pull` beside a running daemon is enough.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import logging
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path

import psutil
from msgspec.structs import replace

from tiermesh.adapters.engines import Reply
from tiermesh.adapters.engines.memory import Budget, default_limit
from tiermesh.adapters.engines.residents import Residents
from tiermesh.adapters.engines.served_model import ENGINE_NAME, Hire, ServedModel, Task, Wanted
from tiermesh.adapters.lora_folder import LocalAdapter
from tiermesh.adapters.model_source import LocalModel, resolve
from tiermesh.config import Precision
from tiermesh.core.suspects import Suspects
from tiermesh.errors import (
    EngineFailed,
    InvalidInput,
    ModelSourceFailed,
    NameTaken,
    Unavailable,
    UnknownModel,
    WorkerDied,
)
from tiermesh.types import EngineInfo, EngineState, Load, Model, Tier

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 3.0
"""How often a model that is missing is looked for; one look costs a few system calls."""
LOOK_IDLE_S = 0.05
"""How often a model that is dropped is looked at."""
MAX_SOCKET_PATH_BYTES = 100
"""macOS allows 103, Linux 107."""
FAREWELL_S = 30.0
"""How long the answers of a model that is dropped may still take, as when a node stops."""
NEEDED = ("torch", "transformers", "safetensors", "accelerate")


def why_unavailable() -> str | None:
    """None when this machine can run the kernel, else the reason and the remedy."""
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if not missing:
        return None
    return f"the built-in kernel needs {', '.join(missing)}: pip install 'tiermesh[all]'"


class KernelEngine:
    """Serves the models in `wanted`, the first of which is the node's own, and those that are added later.

    Create it on the daemon's loop.

    `hire` makes a supervised worker; `state_dir` keeps logs and sockets; `on_change` hears of every change of `info`,
    `models` or `load`; `threads` None lets the workers share the cores; `limit_bytes` None is a share of this machine's
    memory.
    """

    def __init__(
        self,
        wanted: Sequence[Wanted],
        *,
        hire: Hire,
        state_dir: Path,
        on_change: Callable[[], None],
        adapters: Sequence[LocalAdapter] = (),
        limit_bytes: int | None = None,
        precision: Precision = "auto",
        threads: int | None = None,
        find: Callable[[str], LocalModel] = resolve,
    ) -> None:
        self._wanted = tuple(wanted)
        self._adapters = tuple(adapters)
        self._numbers = itertools.count()
        self.used: dict[str, float] = {}
        """When each model was asked last, by its name; Unix time."""
        self._hire = hire
        self._state_dir = state_dir
        self._on_change = on_change
        self._find = find
        self._served: dict[str, ServedModel] = {}
        """By the name that was configured."""
        self._missing: dict[str, str] = {}
        self._suspects = Suspects()
        limit = limit_bytes or default_limit(psutil.virtual_memory().total)
        budget = Budget(limit_bytes=limit, models=max(1, len(self._wanted)), precision=precision)
        self._residents = Residents(budget, threads=threads)
        self._searches: list[asyncio.Task[None]] = []
        self._sockets, self._made_folder = _socket_folder(state_dir)

    @property
    def missing(self) -> str:
        """Why models that were asked for are not there yet, for a person; empty once all are found."""
        return "; ".join(self._missing.values())

    @property
    def info(self) -> EngineInfo:
        """`starting` while no model is found or loaded yet, `down` while none can be had.

        It can continue as soon as one of its models can: the streams of the others carry no token ids to go on from.
        """
        able = any(model.can_continue for model in self._served.values())
        return EngineInfo(ENGINE_NAME, "kernel", self._state(), able)

    @property
    def models(self) -> tuple[Model, ...]:
        """Those that were found, in the order of the configuration; cold until their workers run."""
        return tuple(model for served in self._in_order() for model in served.models)

    @property
    def load(self) -> Load:
        """Slots are those of the models in memory: the others get theirs when they are loaded."""
        loads = [served.load for served in self._served.values()]
        resident = [served.load.slots for served in self._served.values() if served.resident]
        slots = sum(resident) or (1 if loads else 0)
        return Load(sum(x.active for x in loads), slots, sum(x.queued for x in loads))

    async def start(self) -> None:
        """Look for the models in the background."""
        for wanted in self._wanted:
            search = self._run_search(next(self._numbers), wanted)
            self._searches.append(asyncio.create_task(search, name=f"search for {wanted.name}"))

    async def close(self) -> None:
        """End the workers and remove their sockets. May be called twice."""
        for search in self._searches:
            search.cancel()
        await asyncio.gather(*self._searches, return_exceptions=True)
        await self._residents.close()
        await asyncio.gather(*(served.close() for served in self._served.values()))
        if self._made_folder:
            shutil.rmtree(self._sockets, ignore_errors=True)

    def has(self, digest: str) -> bool:
        """Is a model of these weights served, warm or cold?"""
        return any(served.local.digest == digest for served in self._served.values())

    async def add_adapter(self, adapter: LocalAdapter, *, later: bool = False) -> None:
        """Serve it beside its model, without disturbing whoever is answered. `later`: its model may yet be found.

        Raises `NameTaken`, `UnknownModel` when its model is not served here, or `InvalidInput` when it does not fit.
        """
        self._refuse_taken(adapter.name)
        bases = [served for served in self._in_order() if self._belongs(adapter, served.wanted, served.local)]
        if not bases and later:
            self._adapters = (*self._adapters, adapter)
            return
        if not bases:
            raise UnknownModel(f"base: {self._why_no_base(adapter)}", param="base")
        self._adapters = (*self._adapters, adapter)
        try:
            await bases[0].add_adapter(adapter)
        except BaseException:
            self._forget(adapter.name)
            raise

    async def drop_adapter(self, name: str) -> None:
        """Serve it no longer. Raises `UnknownModel`."""
        if all(adapter.name != name for adapter in self._adapters):
            raise UnknownModel(f"name: no adapter {name} is served here", param="name")
        self._forget(name)
        for served in self._in_order():
            if name in served.adapters:
                await served.drop_adapter(name)

    async def add_model(self, local: LocalModel, tier: Tier, *, job: str = "") -> None:
        """Serve one more model, which `job` left, if one did; cold until somebody asks for it.

        Raises `NameTaken` or `ModelSourceFailed`.
        """
        self._refuse_taken(local.name)
        self._residents.check(local)
        wanted = Wanted(name=local.name, tier=tier, job=job)
        self._wanted = (*self._wanted, wanted)
        self._begin(next(self._numbers), wanted, local)

    async def drop_model(self, name: str) -> None:
        """Serve it no longer; what it is saying may end within `FAREWELL_S`. Raises `UnknownModel`."""
        served = self._served.get(name)
        if served is None or served.local.name != name:
            raise UnknownModel(f"name: no model {name} was added here", param="name")
        del self._served[name]
        self._wanted = tuple(wanted for wanted in self._wanted if wanted.name != name)
        self._on_change()
        deadline = time.monotonic() + FAREWELL_S
        while not served.idle and time.monotonic() < deadline:  # noqa: ASYNC110 - rare, and nobody waits for it
            await asyncio.sleep(LOOK_IDLE_S)
        await self._residents.remove(served)
        await served.close()

    def chat(self, body: Mapping[str, object]) -> AbstractAsyncContextManager[Reply]:
        """A chat completion; the model is loaded first if need be. Raises `PoisonedRequest` besides."""
        return self._ask("/v1/chat/completions", body)

    @asynccontextmanager
    async def embed(self, body: Mapping[str, object]) -> AsyncIterator[Reply]:
        """Embeddings, in OpenAI's shape. Raises `InvalidInput` for a model that makes none."""
        served = self._serving(body)
        if not served.embeds or body.get("model") != served.local.name:
            raise InvalidInput(f"model: {body.get('model')} makes no embeddings", param="model")
        async with self._ask("/v1/embeddings", body) as reply:
            yield reply

    @asynccontextmanager
    async def _ask(self, task: Task, body: Mapping[str, object]) -> AsyncIterator[Reply]:
        served = self._serving(body)
        suspicious = self._suspects.check(time.monotonic(), body)
        with served.request():
            async with served.suspects_turn if suspicious else nullcontext():
                self._suspects.check(time.monotonic(), body)  # while it waited, it may have been convicted
                await self._residents.admit(served)
                try:
                    async with served.ask(task, body) as reply:
                        yield replace(reply, chunks=self._watched(reply.chunks, body))
                except WorkerDied as error:
                    self._suspects.note(time.monotonic(), body, error.death)
                    raise

    async def _watched(self, chunks: AsyncIterator[bytes], body: Mapping[str, object]) -> AsyncIterator[bytes]:
        """The chunks of a reply; whether they come whole speaks for or against the request."""
        try:
            async for chunk in chunks:
                yield chunk
        except WorkerDied as error:
            self._suspects.note(time.monotonic(), body, error.death)
            raise
        self._suspects.clear(body)

    def _serving(self, body: Mapping[str, object]) -> ServedModel:
        name = body.get("model")
        for served in self._served.values():
            if any(model.name == name for model in served.models):
                self.used[str(name)] = time.time()
                return served
        raise EngineFailed(self.missing or f"the kernel does not serve {name} yet")

    def _in_order(self) -> list[ServedModel]:
        return [self._served[wanted.name] for wanted in self._wanted if wanted.name in self._served]

    def _state(self) -> EngineState:
        states = [served.state for served in self._served.values()]
        if "ready" in states:
            return "ready"
        searching = len(self._served) + len(self._missing) < len(self._wanted)
        return "starting" if "starting" in states or searching else "down"

    def _changed(self) -> None:
        self._residents.changed()
        self._on_change()

    async def _run_search(self, number: int, wanted: Wanted) -> None:
        while True:
            local = await self._look(wanted)
            if local is not None:
                break
            await asyncio.sleep(LOOK_AGAIN_S)
        self._missing.pop(wanted.name, None)
        served = self._begin(number, wanted, local)
        if wanted.pinned:
            await self._load_pinned(served)

    def _begin(self, number: int, wanted: Wanted, local: LocalModel) -> ServedModel:
        served = self._served[wanted.name] = self._serve(number, wanted, local)
        self._residents.add(served)
        log.info("the kernel serves %s (%s) from %s", local.name, local.digest[:19], local.path)
        self._on_change()
        return served

    def _serve(self, number: int, wanted: Wanted, local: LocalModel) -> ServedModel:
        return ServedModel(
            wanted,
            local,
            tuple(adapter for adapter in self._adapters if self._belongs(adapter, wanted, local)),
            socket=self._sockets / f"kernel-{number}.sock",
            log=self._state_dir / f"kernel-{number}.log",
            hire=self._hire,
            on_change=self._changed,
        )

    def _belongs(self, adapter: LocalAdapter, wanted: Wanted, local: LocalModel) -> bool:
        if adapter.base_digest:
            return adapter.base_digest == local.digest
        return (adapter.base or self._wanted[0].name) in (wanted.name, local.name)

    def _why_no_base(self, adapter: LocalAdapter) -> str:
        named = [served.local for served in self._in_order() if adapter.base in (served.local.name, served.wanted.name)]
        if named:
            return (
                f"{adapter.name} was trained on {adapter.base} with the digest {adapter.base_digest}, "
                f"and {adapter.base} has {named[0].digest} here"
            )
        return f"{adapter.name} needs {adapter.base or adapter.base_digest}, which this node does not serve"

    def _refuse_taken(self, name: str) -> None:
        names = {wanted.name for wanted in self._wanted} | {adapter.name for adapter in self._adapters}
        if name in names | {model.name for model in self.models}:
            raise NameTaken(f"name: {name} is served on this node already, and is something else", param="name")

    def _forget(self, name: str) -> None:
        self._adapters = tuple(adapter for adapter in self._adapters if adapter.name != name)
        self.used.pop(name, None)

    async def _load_pinned(self, served: ServedModel) -> None:
        try:
            await self._residents.admit(served)
        except Unavailable as error:
            log.warning("%s is pinned, but is loaded by its first prompt only: %s", served.local.name, error)

    async def _look(self, wanted: Wanted) -> LocalModel | None:
        try:
            local = await asyncio.to_thread(self._find, wanted.name)
            self._residents.check(local)
            self._refuse_same_name(local)
        except (UnknownModel, ModelSourceFailed) as error:
            if str(error) != self._missing.get(wanted.name):
                self._missing[wanted.name] = str(error)
                log.warning("the kernel lacks a model: %s", error)
                self._on_change()
            return None
        return local

    def _refuse_same_name(self, local: LocalModel) -> None:
        """Folders are named by their last part, so two may meet; an adapter may have been given any name."""
        taken = [model.name for model in self.models] + [adapter.name for adapter in self._adapters]
        if local.name in taken:
            raise ModelSourceFailed(f"{local.path} would be served as {local.name}, but there is one already")


def _socket_folder(state_dir: Path) -> tuple[Path, bool]:
    """Where the workers listen, and whether the folder was made for it.

    In the state folder, where the next daemon finds and replaces them, unless that path is too long for a socket.
    """
    if len(os.fsencode(state_dir / "kernel-00.l.sock")) <= MAX_SOCKET_PATH_BYTES:
        return state_dir, False
    return Path(tempfile.mkdtemp(prefix="tiermesh-")), True
