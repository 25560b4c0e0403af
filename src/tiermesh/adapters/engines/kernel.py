"""The built-in engine: our own PyTorch worker, started when the first prompt comes, reached over a Unix socket.

This module never imports torch. A model that is not on this machine is looked for again every few seconds, so that
`mesh model pull` beside a running daemon is enough.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tiermesh.adapters.engines import Reply
from tiermesh.adapters.model_source import LocalModel, resolve
from tiermesh.adapters.worker import Worker, WorkerSpec
from tiermesh.errors import EngineFailed, ModelSourceFailed, TiermeshError, Unavailable, UnknownModel
from tiermesh.types import EngineInfo, EngineState, Load, Model, ModelState, Tier

log = logging.getLogger(__name__)

ENGINE_NAME = "kernel"
SLOTS = 1
"""The worker computes one sequence at a time."""
LOOK_AGAIN_S = 3.0
"""How often a model that is missing is looked for; one look costs a few system calls."""
HEALTH_LIMIT_S = 1.0
"""A worker on this machine that is silent for this long is not ready."""
MAX_SOCKET_PATH_BYTES = 100
"""macOS allows 103, Linux 107."""
DEATH_NOTICE_S = 1.0
"""Between a dead worker's socket refusing us and the system telling that it died; it takes milliseconds."""
CHAT_URL = "http://worker/v1/chat/completions"
"""The host is of no meaning on a Unix socket."""
NEEDED = ("torch", "transformers", "safetensors", "accelerate")

Hire = Callable[[WorkerSpec, Callable[[], None]], Worker]
"""`daemon.supervisor.Supervisor.worker`."""


def why_unavailable() -> str | None:
    """None when this machine can run the kernel, else the reason and the remedy."""
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if not missing:
        return None
    return f"the built-in kernel needs {', '.join(missing)}: pip install 'tiermesh[all]'"


class KernelEngine:
    """Serves one model. Create it on the daemon's loop.

    `model` is any name that `model_source.resolve` takes; `tier` is the node's, declared or derived; `hire` makes a
    supervised worker; `state_dir` keeps its log and its socket; `on_change` hears of every change of `info`, `models`
    or `load`; `threads` None lets the worker take its cores; `preload` starts it before the first prompt, which costs
    its memory from the start and saves some seconds then.
    """

    def __init__(
        self,
        *,
        model: str,
        tier: Tier,
        hire: Hire,
        state_dir: Path,
        on_change: Callable[[], None],
        threads: int | None = None,
        preload: bool = False,
        find: Callable[[str], LocalModel] = resolve,
    ) -> None:
        self._wanted = model
        self._tier = tier
        self._hire = hire
        self._state_dir = state_dir
        self._on_change = on_change
        self._threads = threads
        self._preload = preload
        self._find = find
        self._local: LocalModel | None = None
        self._worker: Worker | None = None
        self._session: aiohttp.ClientSession | None = None
        self._search: asyncio.Task[None] | None = None
        self._socket, self._made_folder = _socket_path(state_dir)
        self._in_flight = 0
        self.missing = ""
        """Why there is no model yet, for a person; empty once it is found."""

    @property
    def info(self) -> EngineInfo:
        """`starting` while the model is looked for or loaded, `down` while it can't be had."""
        return EngineInfo(ENGINE_NAME, "kernel", self._state())

    @property
    def models(self) -> tuple[Model, ...]:
        """The one model, cold until its worker runs."""
        if self._local is None:
            return ()
        states: Mapping[str, ModelState] = {"ready": "warm", "starting": "loading", "waiting": "loading"}
        state = states.get(self._worker.state, "cold") if self._worker else "cold"
        return (Model(self._local.name, self._local.digest, self._tier, ENGINE_NAME, state),)

    @property
    def load(self) -> Load:
        """Counted here: nobody else talks to the worker."""
        return Load(min(self._in_flight, SLOTS), SLOTS, max(0, self._in_flight - SLOTS))

    async def start(self) -> None:
        """Look for the model in the background."""
        connector = aiohttp.UnixConnector(path=str(self._socket), limit=0)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        self._search = asyncio.create_task(self._run_search(), name="kernel model search")

    async def close(self) -> None:
        """End the worker and remove its socket."""
        if self._search is not None:
            self._search.cancel()
            await asyncio.gather(self._search, return_exceptions=True)
            self._search = None
        if self._worker is not None:
            await self._worker.close()
        if self._session is not None:
            await self._session.close()
            self._session = None
        self._socket.unlink(missing_ok=True)
        if self._made_folder is not None:
            shutil.rmtree(self._made_folder, ignore_errors=True)

    @asynccontextmanager
    async def chat(self, body: Mapping[str, object]) -> AsyncIterator[Reply]:
        """Start the worker if need be, and pass the request on."""
        worker = self._worker
        if worker is None or self._session is None:
            raise EngineFailed(self.missing or f"{self._wanted} is not found yet")
        self._count(+1)
        try:
            response = await self._post(worker, body)
            try:
                if response.status == Unavailable.http_status:
                    raise await _unavailable(response)
                yield Reply(response.status, response.content_type, _chunks(response))
            finally:
                # Closes the connection, which stops the generation.
                response.close()
        finally:
            self._count(-1)

    async def _post(self, worker: Worker, body: Mapping[str, object]) -> aiohttp.ClientResponse:
        """The head of the worker's answer. A worker that turns out to be dead before it heard us is waited for once."""
        assert self._session is not None
        await worker.ready()
        try:
            return await self._session.post(CHAT_URL, json=body)
        except aiohttp.ClientConnectorError:
            await worker.wait_until_lost(DEATH_NOTICE_S)
        except (aiohttp.ClientError, OSError) as error:
            raise EngineFailed(f"the kernel's worker did not answer: {error}") from error
        await worker.ready()
        try:
            return await self._session.post(CHAT_URL, json=body)
        except (aiohttp.ClientError, OSError) as error:
            raise EngineFailed(f"the kernel's worker did not answer: {error}") from error

    def _state(self) -> EngineState:
        if self._worker is None:
            return "down" if self.missing else "starting"
        if self._worker.state == "starting":
            return "starting"
        return "down" if self._worker.failure else "ready"

    def _count(self, step: int) -> None:
        self._in_flight += step
        self._on_change()

    async def _run_search(self) -> None:
        while True:
            local = await self._look()
            if local is not None:
                break
            await asyncio.sleep(LOOK_AGAIN_S)
        self.missing = ""
        self._local = local
        self._worker = self._hire(self._spec(local), self._on_change)
        log.info("the kernel serves %s (%s) from %s", local.name, local.digest[:19], local.path)
        if self._preload:
            self._worker.begin()
        self._on_change()

    async def _look(self) -> LocalModel | None:
        try:
            return await asyncio.to_thread(self._find, self._wanted)
        except (UnknownModel, ModelSourceFailed) as error:
            if str(error) != self.missing:
                self.missing = str(error)
                log.warning("the kernel has no model: %s", error)
                self._on_change()
            return None

    def _spec(self, local: LocalModel) -> WorkerSpec:
        threads = [] if self._threads is None else ["--threads", str(self._threads)]
        return WorkerSpec(
            name=f"the worker of {local.name}",
            argv=[
                *(sys.executable, "-m", "tiermesh.kernel.inference", "--socket", str(self._socket)),
                *("--model", str(local.path), "--name", local.name, "--digest", local.digest),
                *threads,
            ],
            log=self._state_dir / "kernel.log",
            is_ready=self._is_ready,
        )

    async def _is_ready(self) -> bool:
        assert self._session is not None
        limit = aiohttp.ClientTimeout(total=HEALTH_LIMIT_S)
        try:
            async with self._session.get("http://worker/health", timeout=limit) as response:
                return bool((await response.json())["status"] == "ready")
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError):
            return False


def _socket_path(state_dir: Path) -> tuple[Path, Path | None]:
    """Where the worker listens, and the folder that was made for it, if one was.

    In the state folder, where the next daemon finds and replaces it, unless that path is too long for a socket.
    """
    usual = state_dir / "kernel.sock"
    if len(os.fsencode(usual)) <= MAX_SOCKET_PATH_BYTES:
        return usual, None
    made = Path(tempfile.mkdtemp(prefix="tiermesh-"))
    return made / "kernel.sock", made


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except (aiohttp.ClientError, OSError) as error:
        raise EngineFailed("the kernel's worker broke off in the middle of its answer") from error


async def _unavailable(response: aiohttp.ClientResponse) -> TiermeshError:
    retry_after_s = float(response.headers.get("Retry-After", "1"))
    try:
        message = json.loads(await response.text())["error"]["message"]
    except (aiohttp.ClientError, ValueError, KeyError, TypeError):
        message = "the kernel's worker is busy"
    return Unavailable(message, retry_after_s=retry_after_s)
