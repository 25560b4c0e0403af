"""One model that this node runs itself: found on disk, computed by a worker process of its own, asked over a socket.

The worker is hired when the model has to be in memory and dismissed when another one needs the room. In between it may
die and is started again; nothing here knows of torch.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp

from tiermesh.adapters.engines import Reply
from tiermesh.adapters.engines.attached import Attached
from tiermesh.adapters.engines.memory import is_gguf, llama_shape
from tiermesh.adapters.engines.worker_health import Health, ask_health
from tiermesh.adapters.lora_folder import LocalAdapter
from tiermesh.adapters.model_source import LocalModel
from tiermesh.adapters.worker import Worker, WorkerSpec
from tiermesh.config import Precision
from tiermesh.errors import EngineFailed, InvalidInput, TiermeshError, Unavailable, WorkerDied
from tiermesh.types import EngineState, Load, Model, ModelState, Tier

log = logging.getLogger(__name__)

ENGINE_NAME = "kernel"
DEATH_NOTICE_S = 0.5
"""Between a connection's end and the system telling that the process died; it takes milliseconds."""
ADAPTER_LIMIT_S = 60.0
"""An adapter is read from disk in milliseconds and waits for a step of the worker, which may take seconds on a slow
machine."""
HOST = "http://worker"
"""Of no meaning on a Unix socket."""

TORCH = "tiermesh.kernel.inference"
LLAMACPP = "tiermesh.kernel.llamacpp"
"""The programs of the workers; never imported here."""

Task = Literal["/v1/chat/completions", "/v1/embeddings"]
Hire = Callable[[WorkerSpec, Callable[[], None]], Worker]
"""`daemon.supervisor.Supervisor.worker`."""
Life = tuple[str, int, int]
"""One process of one model: its socket, how often it was hired, and how often started since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a person asked for. `name` is what `model_source.resolve` takes."""

    name: str
    tier: Tier
    pinned: bool = False
    """In memory from the start, and never unloaded."""
    job: str = ""
    """That left it, if one did."""


class ServedModel:
    """One of the kernel's models, found on this machine. `on_change` hears of every change of `models` or `load`."""

    def __init__(
        self,
        wanted: Wanted,
        local: LocalModel,
        adapters: tuple[LocalAdapter, ...],
        *,
        socket: Path,
        log: Path,
        hire: Hire,
        on_change: Callable[[], None],
    ) -> None:
        self.wanted = wanted
        self.local = local
        self.adapters = Attached(local.name, adapters, self._tell)
        self.suspects_turn = asyncio.Lock()
        """Held by a request that was there when a worker died: such requests run one at a time."""
        self.last_used = 0.0
        """Monotonic, in seconds."""
        self.reserved_bytes = 0
        """What its worker was given; 0 while there is none."""
        self._socket = socket
        self._log = log
        self._hire = hire
        self._on_change = on_change
        self._health = Health()
        self._worker: Worker | None = None
        self._dismissal: asyncio.Task[None] | None = None
        self._hired = 0
        self._in_flight = 0
        connector = aiohttp.UnixConnector(path=str(socket), limit=0)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))

    @property
    def models(self) -> tuple[Model, ...]:
        """The model itself, then its adapters but for those that its worker refused: one worker serves them all."""
        state = self._model_state()
        progress = self._health.progress if state == "loading" else None
        names = [(self.local.name, self.local.digest, self.wanted.job)]
        names += [(one.name, one.digest_on(self.local.digest), one.job) for one in self.adapters.served]
        return tuple(
            Model(name, digest, self.wanted.tier, ENGINE_NAME, state, progress, self.can_continue, job)
            for name, digest, job in names
        )

    @property
    def state(self) -> EngineState:
        """`down` while its worker keeps failing."""
        if self._worker is None:
            return "ready"
        if self._worker.state == "starting":
            return "starting"
        return "down" if self._worker.failure else "ready"

    @property
    def load(self) -> Load:
        """Counted here: nobody else talks to the worker."""
        slots = self._health.slots
        return Load(min(self._in_flight, slots), slots, max(0, self._in_flight - slots))

    @property
    def resident(self) -> bool:
        """Is it in memory, or on its way there?"""
        return self._worker is not None

    @property
    def idle(self) -> bool:
        """May it be unloaded without harm to anybody?"""
        return self._in_flight == 0

    @property
    def can_continue(self) -> bool:
        """llama.cpp takes no token ids of an unfinished answer."""
        return not is_gguf(self.local.path)

    @property
    def embeds(self) -> bool:
        """llama.cpp makes embeddings only when it does nothing else; an adapter is made for answers, never for them."""
        return not is_gguf(self.local.path)

    @property
    def life(self) -> Life:
        """Names the process that serves now."""
        return (self._socket.name, self._hired, self._worker.starts if self._worker else 0)

    async def load_up(
        self, *, reserved_bytes: int, cache_bytes: int, threads: int | None, precision: Precision
    ) -> None:
        """Hire a worker and have it start; returns at once, unless an earlier one is still on its way out."""
        assert self._worker is None, "there is one worker at a time"
        if self._dismissal is not None:
            await asyncio.shield(self._dismissal)
        self._hired += 1
        self._health = Health()
        self.reserved_bytes = reserved_bytes

        def argv() -> list[str]:
            self._health = Health()
            return self._command(cache_bytes, threads, precision)

        spec = WorkerSpec(name=f"the worker of {self.local.name}", argv=argv, log=self._log, is_ready=self._look)
        self._worker = self._hire(spec, self._on_change)
        self._worker.begin()

    async def unload(self) -> None:
        """Dismiss the worker and wait until its memory is free again. May be called twice."""
        if self._worker is not None:
            self._dismissal = asyncio.create_task(self._worker.close(), name=f"dismiss {self.local.name}")
            self._worker = None
        try:
            if self._dismissal is not None:
                # Whoever waits for the room may leave; the worker goes all the same.
                await asyncio.shield(self._dismissal)
        finally:
            self.reserved_bytes = 0
            self._on_change()

    async def close(self) -> None:
        """Unload, and leave nothing behind. May be called twice."""
        await self.unload()
        await self._session.close()
        for left in self._socket.parent.glob(f"{self._socket.stem}.*sock"):  # llama.cpp has one of its own beside it
            left.unlink(missing_ok=True)

    async def add_adapter(self, adapter: LocalAdapter) -> None:
        """Serve one more, at once where the worker runs, and from its next start where it does not.

        Raises `InvalidInput` when the worker refuses it, and then it is not served.
        """
        if is_gguf(self.local.path):
            raise InvalidInput(f"{self.local.name} is a GGUF, which takes no adapters here", param="base")
        await self.adapters.add(adapter, is_ready=self._is_ready)
        self._on_change()

    async def drop_adapter(self, name: str) -> None:
        """Serve it no longer; answers that it is giving now are given to the end."""
        await self.adapters.drop(name, is_ready=self._is_ready)
        self._on_change()

    def _is_ready(self) -> bool:
        """Has the worker loaded, and does it listen, as far as is known?"""
        return self._worker is not None and self._health.ready

    async def _tell(self, method: str, path: str, body: Mapping[str, object] | None) -> None:
        """Raises `InvalidInput` for the worker's 4xx, with its words, and `EngineFailed` for anything else."""
        limit = aiohttp.ClientTimeout(total=ADAPTER_LIMIT_S)
        try:
            async with self._session.request(method, HOST + path, json=body, timeout=limit) as response:
                text = await response.text()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise EngineFailed(f"the worker of {self.local.name} does not answer: {error}") from error
        if response.status == 200:
            return
        message = _message(text) or f"HTTP {response.status}"
        if response.status < 500:
            raise InvalidInput(message, param="adapter")
        raise EngineFailed(message)

    @contextmanager
    def request(self) -> Iterator[None]:
        """One request is here, waiting or running."""
        self._in_flight += 1
        self._on_change()
        try:
            yield
        finally:
            self._in_flight -= 1
            self.last_used = time.monotonic()
            self._on_change()

    @asynccontextmanager
    async def ask(self, task: Task, body: Mapping[str, object]) -> AsyncIterator[Reply]:
        """Pass a request on to the worker. Leaving the context stops the work.

        Raises `EngineFailed`, `Unavailable`, or, also from the reply's chunks, `WorkerDied`.
        """
        assert self._worker is not None, "load_up() comes first"
        await self._worker.ready()
        response = await self._post(task, body)
        life = self.life  # of the one that answers: the first that was asked may have died
        try:
            if response.status == Unavailable.http_status:
                raise await _unavailable(response)
            yield Reply(response.status, response.content_type, self._chunks(response, life), response.headers)
        finally:
            # Closes the connection, which stops the generation.
            response.close()

    async def _post(self, task: Task, body: Mapping[str, object]) -> aiohttp.ClientResponse:
        """The head of the worker's answer. A worker that turns out to be dead before it heard us is waited for once."""
        assert self._worker is not None
        life = self.life
        try:
            return await self._session.post(HOST + task, json=body)
        except aiohttp.ClientConnectorError:
            await self._worker.wait_until_lost(DEATH_NOTICE_S)
        except (aiohttp.ClientError, OSError) as error:
            raise await self._broken(life) from error
        await self._worker.ready()
        life = self.life
        try:
            return await self._session.post(HOST + task, json=body)
        except (aiohttp.ClientError, OSError) as error:
            raise await self._broken(life) from error

    async def _chunks(self, response: aiohttp.ClientResponse, life: Life) -> AsyncIterator[bytes]:
        try:
            async for chunk in response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise await self._broken(life) from error

    async def _broken(self, life: Life) -> EngineFailed:
        """Why a connection ended too early: the process died, or it gave this one request up."""
        worker = self._worker
        if worker is not None and self.life == life:
            await worker.wait_until_lost(DEATH_NOTICE_S)
        if worker is None or self.life != life or worker.state != "ready":
            why = worker.failure if worker is not None else ""
            why = why or f"the worker of {self.local.name} died"
            return WorkerDied(f"{why} before the answer was complete", death=life)
        return EngineFailed(f"the worker of {self.local.name} broke off its answer; its log says why: {self._log}")

    def _model_state(self) -> ModelState:
        states: Mapping[str, ModelState] = {"ready": "warm", "starting": "loading", "waiting": "loading"}
        return states.get(self._worker.state, "cold") if self._worker else "cold"

    def _command(self, cache_bytes: int, threads: int | None, precision: Precision) -> list[str]:
        local = self.local
        command = [
            sys.executable,
            "-m",
            LLAMACPP if is_gguf(local.path) else TORCH,
            "--socket",
            str(self._socket),
            "--model",
            str(local.path),
        ]
        command += ["--name", local.name, "--digest", local.digest]
        command += [] if threads is None else ["--threads", str(threads)]
        adapters = self.adapters.arguments()
        if is_gguf(local.path):
            slots, context = llama_shape(local, cache_bytes)
            return [*command, "--slots", str(slots), "--context-length", str(context)]
        command += ["--precision", precision, "--memory-bytes", str(cache_bytes)]
        return command + adapters

    async def _look(self) -> bool:
        """Is the worker ready? What it says of its load is told when it has moved a step."""
        health = await ask_health(self._session, f"{HOST}/health")
        if health is None:
            return False
        moved = health.progress != self._health.progress
        self._health = health
        if health.ready and not await self.adapters.caught_up(health.adapters, self._log):
            return False
        if moved:
            self._on_change()
        return health.ready


async def _unavailable(response: aiohttp.ClientResponse) -> TiermeshError:
    retry_after_s = float(response.headers.get("Retry-After", "1"))
    try:
        message = _message(await response.text())
    except aiohttp.ClientError:
        message = ""
    return Unavailable(message or "the kernel's worker is busy", retry_after_s=retry_after_s)


def _message(body: str) -> str:
    """What an error's body says; nothing when it is none of ours."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
