"""Which engines this node has: those it was told of, those it finds on this machine, and its own kernel."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tiermesh.adapters.background import Background
from tiermesh.adapters.catalogue import CATALOGUE, DEFAULT_MODEL
from tiermesh.adapters.engines import Engine
from tiermesh.adapters.engines.detect import Detector
from tiermesh.adapters.engines.kernel import KernelEngine, why_unavailable
from tiermesh.adapters.engines.openai_server import OpenAIServer
from tiermesh.adapters.engines.served_model import ENGINE_NAME, Wanted
from tiermesh.adapters.lora_folder import LocalAdapter, read_adapter
from tiermesh.adapters.model_source import can_pull, resolve
from tiermesh.config import AdapterEntry, DaemonOptions, EngineEntry, ModelEntry
from tiermesh.daemon.supervisor import Supervisor
from tiermesh.errors import InvalidConfig, InvalidInput, ModelSourceFailed, UnknownModel
from tiermesh.types import Tier

log = logging.getLogger(__name__)


class EngineRoom:
    """Owner of this node's engines. `on_change` is called whenever one of them, or their number, changed."""

    def __init__(self, options: DaemonOptions, *, tier: Tier, on_change: Callable[[], None]) -> None:
        self._options = options
        self._tier = tier
        self._on_change = on_change
        self._engines: dict[str, Engine] = {}
        self._detector: Detector | None = None
        self._supervisor = Supervisor(options.state_dir)
        self._background = Background()
        self._opening = asyncio.Lock()
        self._reason = "switched off by --no-engine"

    @property
    def engines(self) -> Mapping[str, Engine]:
        """By name."""
        return self._engines

    @property
    def no_engine_reason(self) -> str:
        """Why there is none, for a person; meaningless when there is one."""
        return self._reason

    def __iter__(self) -> Iterator[Engine]:
        return iter(self._engines.values())

    async def open(self) -> None:
        """Start the engines; those that run on this machine already have been looked for when it returns.

        Raises `InvalidConfig` when a model was asked for that this node can't run.
        """
        for entry in self._options.engines:
            await self._add_server(entry)
        if self._options.detect:
            self._detector = Detector(self._found, known=[entry.url for entry in self._options.engines])
            await self._detector.start()
        if self._options.kernel and (self._options.models or not self._engines):
            await self._open_kernel(self._options.models or (ModelEntry(name=DEFAULT_MODEL),))

    async def close(self) -> None:
        """Stop all of them."""
        if self._detector is not None:
            await self._detector.close()
        await self._background.close()
        await asyncio.gather(*(engine.close() for engine in self._engines.values()))
        await self._supervisor.close()
        self._engines.clear()

    def holds(self, base: str, digest: str) -> bool:
        """Does the kernel serve this model, warm or cold? A `digest` of "" is unknown."""
        kernel = self._engines.get(ENGINE_NAME)
        if not isinstance(kernel, KernelEngine):
            return False
        return kernel.has(digest) if digest else any(model.name == base for model in kernel.models)

    async def hold(self, base: str, digest: str) -> None:
        """Have the kernel serve this model of this machine, cold until it is asked, if it does not do so already.

        Never downloads. Raises `UnknownModel`, `ModelSourceFailed` when it is here and can't be served, or
        `InvalidInput` when it has other weights than those of `digest`; "" is unknown.
        """
        kernel = await self._kernel()
        if self.holds(base, digest):
            return
        for model in kernel.models:
            if model.name == base:
                raise InvalidInput(f"base: {base} has the digest {model.digest} here, not {digest}", param="base")
        local = await asyncio.to_thread(resolve, base)
        if digest and local.digest != digest:
            raise InvalidInput(f"base: {base} has the digest {local.digest} here, not {digest}", param="base")
        await kernel.add_model(local, self._tier)

    async def add_adapter(self, adapter: LocalAdapter, *, later: bool = False) -> None:
        """As `KernelEngine.add_adapter`."""
        await (await self._kernel()).add_adapter(adapter, later=later)

    async def drop_adapter(self, name: str) -> None:
        """Serve it no longer. Raises `UnknownModel`."""
        await (await self._kernel()).drop_adapter(name)

    async def add_model(self, name: str, folder: Path, job: str) -> None:
        """Serve the model in this folder, which `job` left, by this name.

        Raises `NameTaken`, `UnknownModel` or `ModelSourceFailed`.
        """
        kernel = await self._kernel()
        local = await asyncio.to_thread(resolve, str(folder))
        await kernel.add_model(replace(local, name=name), self._tier, job=job)

    async def drop_model(self, name: str) -> None:
        """Serve it no longer. Raises `UnknownModel`."""
        await (await self._kernel()).drop_model(name)

    @property
    def used(self) -> Mapping[str, float]:
        """When each of the kernel's models was asked last, by name; Unix time."""
        kernel = self._engines.get(ENGINE_NAME)
        return kernel.used if isinstance(kernel, KernelEngine) else {}

    async def _kernel(self) -> KernelEngine:
        """The node's own kernel, opened if it was not needed so far. Raises `UnknownModel` where there can be none."""
        async with self._opening:
            if isinstance(kernel := self._engines.get(ENGINE_NAME), KernelEngine):
                return kernel
            reason = why_unavailable() if self._options.kernel else "its kernel is switched off"
            if reason is not None:
                raise UnknownModel(f"this node runs no models itself: {reason}", param="base")
            return await self._add_kernel((), [])

    async def _add_server(self, entry: EngineEntry, kind: str | None = None) -> None:
        await self._add(
            OpenAIServer(
                name=entry.label,
                url=entry.url,
                kind=kind or entry.kind,
                tier=self._tier if entry.tier is None else entry.tier,
                model=entry.model,
                token=entry.token,
                slots=entry.slots,
                on_change=self._on_change,
            )
        )

    async def _found(self, kind: str, url: str) -> None:
        name = kind if kind not in self._engines else f"{kind}-here"  # a person may have named another one so
        await self._add_server(EngineEntry(url=url, name=name), kind)

    async def _open_kernel(self, models: Sequence[ModelEntry]) -> None:
        for_torch = [model.name for model in models if _needs_torch(model.name)]
        self._reason = (for_torch and why_unavailable()) or ""
        if self._reason:
            if self._options.models:
                raise InvalidConfig(f"can't run {for_torch[0]}: {self._reason}", param="model")
            return
        missing = await asyncio.to_thread(_missing, models)
        adapters = await asyncio.to_thread(_read_adapters, self._options.adapters)
        await self._add_kernel(models, adapters)
        for model in missing:
            log.info("%s is not on this machine yet; fetching it now", model)
        if missing:
            self._background.start(self._fetch_all(missing))

    async def _add_kernel(self, models: Sequence[ModelEntry], adapters: Sequence[LocalAdapter]) -> KernelEngine:
        await asyncio.to_thread(self._supervisor.start)
        options = self._options
        kernel = KernelEngine(
            [Wanted(name=m.name, tier=self._tier if m.tier is None else m.tier, pinned=m.pinned) for m in models],
            adapters=adapters,
            limit_bytes=options.memory_limit_bytes,
            precision=options.precision,
            hire=self._supervisor.worker,
            state_dir=options.state_dir,
            on_change=self._on_change,
        )
        await self._add(kernel)
        return kernel

    async def _fetch_all(self, models: Sequence[str]) -> None:
        """One after the other: two conversions at once would take the memory of both."""
        for model in models:
            await self._fetch(model)

    async def _fetch(self, model: str) -> None:
        """Fetch what isn't on this machine, once, by a process of its own that may be stopped at any time."""
        command = (sys.executable, "-m", "tiermesh.cli.main", "model", "pull", model)
        pull = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
        try:
            code = await pull.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                pull.terminate()
        if code == 0:
            log.info("fetched %s", model)
        else:
            log.error("%s could not be fetched: `mesh model pull %s` tries again while this node runs", model, model)

    async def _add(self, engine: Engine) -> None:
        self._engines[engine.info.name] = engine
        await engine.start()
        self._on_change()


def _needs_torch(model: str) -> bool:
    """A GGUF is llama.cpp's, whether by path or by a name of the catalogue."""
    entry = CATALOGUE.get(model)
    return entry.converted if entry is not None else not model.endswith(".gguf")


def _missing(models: Iterable[ModelEntry]) -> list[str]:
    """Those that this machine lacks. Blocks for a look at the disk; raises `UnknownModel` for what nobody can fetch."""
    missing = []
    for model in models:
        try:
            resolve(model.name)
        except UnknownModel:
            if not can_pull(model.name):
                raise
            missing.append(model.name)
    return missing


def _read_adapters(entries: Sequence[AdapterEntry]) -> list[LocalAdapter]:
    """Blocks. Raises `InvalidConfig` for a folder that holds no adapter."""
    found = []
    for index, entry in enumerate(entries):
        try:
            found.append(read_adapter(entry.name, entry.path, entry.base))
        except ModelSourceFailed as error:
            raise InvalidConfig(str(error), param=f"adapters[{index}].path") from error
    return found
