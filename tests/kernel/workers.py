"""A real inference worker, started as the daemon would, and what a client asks of it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from tests import tiny_model

START_LIMIT_S = 150.0
"""torch alone takes seconds to import, and the machine may be busy."""


@dataclass(frozen=True)
class WorkerProcess:
    """A real inference worker, as the daemon would start it."""

    popen: subprocess.Popen[bytes]
    socket: Path
    log: Path

    @asynccontextmanager
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.socket))) as session:
            yield session

    async def health(self) -> Any:
        async with self.session() as session, session.get("http://w/health") as response:
            return await response.json()

    async def post(self, body: object) -> tuple[int, Any]:
        async with self.session() as session, session.post("http://w/v1/chat/completions", json=body) as response:
            return response.status, await response.json()

    async def ask(self, text: str = "hello", **parameters: object) -> Any:
        """One answer, whole."""
        status, answer = await self.post(question(text, **parameters))
        assert status == 200, answer
        return answer

    async def stream(self, text: str = "hello", **parameters: object) -> list[Any]:
        """The events of one streamed answer; the last must be `[DONE]`."""
        async with self.session() as session:
            body = question(text, stream=True, **parameters)
            async with session.post("http://w/v1/chat/completions", json=body) as response:
                assert response.status == 200
                assert response.content_type == "text/event-stream"
                raw = (await response.read()).decode()
        assert raw.endswith("data: [DONE]\n\n")
        return [json.loads(event.removeprefix("data: ")) for event in raw.split("\n\n")[:-2]]

    async def until(self, wanted: Callable[[Any], bool], limit_s: float = 60.0) -> Any:
        """Wait until the worker's health is as wanted."""
        async with asyncio.timeout(limit_s):
            while True:
                try:
                    health = await self.health()
                except (aiohttp.ClientError, OSError):
                    health = None
                if health is not None and wanted(health):
                    return health
                await asyncio.sleep(0.01)


def question(text: str, **parameters: object) -> dict[str, object]:
    return {"model": tiny_model.NAME, "messages": [{"role": "user", "content": text}], **parameters}


def text_of(answer: Any) -> str:
    text = answer["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


def streamed_text(events: list[Any]) -> str:
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"])


def counted(event: Any) -> tuple[int, int, int]:
    """Usage, less what depends on who asked before."""
    usage = event["usage"]
    return usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]


def start_worker(folder: Path, socket: Path, *arguments: str) -> WorkerProcess:
    command = [
        *(sys.executable, "-m", "tiermesh.kernel.inference", "--socket", str(socket), "--model", str(folder)),
        *("--precision", "fp32"),  # equal requests have equal answers in every batch
        *("--name", tiny_model.NAME, "--digest", "sha256:0", "--threads", "1", *arguments),
    ]
    log = socket.with_suffix(".log")
    with log.open("wb") as stderr:
        popen = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=stderr)
    return WorkerProcess(popen, socket, log)


def stop_worker(worker: WorkerProcess) -> None:
    assert worker.popen.stdin is not None
    worker.popen.kill()
    worker.popen.wait()
    worker.popen.stdin.close()


def wait_until_ready(worker: WorkerProcess) -> None:
    asyncio.run(worker.until(lambda health: health["status"] == "ready", START_LIMIT_S))


def wait_for(condition: Callable[[], bool], limit_s: float) -> bool:
    """Poll a condition; gives whether it came true in time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
