"""The engines that are compared: each in a process of its own, asked over a pipe or a Unix socket."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.kernel.answer import Answer

START_LIMIT_S = 120.0
POLL_S = 0.05
LINE_BYTES = 64 << 20
"""Answers with the times of all their tokens come in one line."""


class _Child:
    """A process that ends when its standard input does."""

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        self._argv, self._log = argv, log
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *self._argv), stdin=-1, stdout=-1, stderr=log, limit=LINE_BYTES
            )

    async def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        await self.process.wait()

    def fail(self) -> RuntimeError:
        return RuntimeError(f"{' '.join(self._argv[:1])} ended; see {self._log}")


class Piped:
    """transformers: `benchmarks.kernel.baseline`."""

    def __init__(self, name: str, folder: Path, log: Path, threads: int, *options: str) -> None:
        self.name = name
        common = ("--model", str(folder), "--threads", str(threads))
        self._child = _Child(("benchmarks.kernel.baseline", *common, *options), log)

    async def start(self) -> None:
        await self._child.start()
        await self._line()

    async def ask(self, prompts: Sequence[str], tokens: int) -> list[Answer]:
        told = await self._call({"prompts": list(prompts), "tokens": tokens})
        return [
            Answer(**{**one, "tokens": tuple(one["tokens"]), "arrivals": tuple(one["arrivals"])})
            for one in told["answers"]
        ]

    async def judge(self, answers: Sequence[tuple[str, Answer]]) -> list[list[float]]:
        """For each (prompt, answer): how far each token's logit is below the best."""
        listed = [{"prompt": prompt, "tokens": one.tokens, "text": one.text} for prompt, one in answers]
        gaps: list[list[float]] = (await self._call({"judge": listed}))["gaps"]
        return gaps

    async def close(self) -> None:
        await self._child.close()

    async def _call(self, asked: Mapping[str, object]) -> Any:
        stdin = self._child.process.stdin
        assert stdin is not None
        stdin.write(json.dumps(asked).encode() + b"\n")
        await stdin.drain()
        return await self._line()

    async def _line(self) -> Any:
        stdout = self._child.process.stdout
        assert stdout is not None
        if line := await stdout.readline():
            return json.loads(line)
        raise self._child.fail()


class Served:
    """An OpenAI server on a Unix socket, started by `argv`, asked over a new connection each time."""

    def __init__(
        self, name: str, argv: Sequence[str], socket: Path, log: Path, further: Mapping[str, object] | None = None
    ) -> None:
        self.name = name
        self._further = further or {}
        self._child = _Child(argv, log)
        self._socket = socket
        self._session: aiohttp.ClientSession

    async def start(self) -> None:
        await self._child.start()
        connector = aiohttp.UnixConnector(str(self._socket), limit=0, force_close=True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        async with asyncio.timeout(START_LIMIT_S):
            while not await self._is_ready():
                if self._child.process.returncode is not None:
                    raise self._child.fail()
                await asyncio.sleep(POLL_S)

    async def ask(self, prompts: Sequence[str], tokens: int) -> list[Answer]:
        return await asyncio.gather(*(self.chat([{"role": "user", "content": text}], tokens) for text in prompts))

    async def chat(
        self, messages: list[dict[str, str]], tokens: int, tell: tuple[int, asyncio.Event] | None = None
    ) -> Answer:
        """One conversation's next answer; tells when so many pieces of it have come."""
        body = {
            "model": "m",
            "messages": messages,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._further,
        }
        started = time.perf_counter()
        texts, ids, arrivals, usage = list[str](), list[int](), list[float](), dict[str, int]()
        async with self._session.post("http://w/v1/chat/completions", json=body) as response:
            if response.status != 200:
                raise RuntimeError(f"{self.name} answered {response.status}: {await response.text()}")
            async for event in _events(response):
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    text, chosen = choice["delta"].get("content"), choice.get("token_ids")
                    texts.append(text or "")
                    ids += chosen or []
                    arrivals += [time.perf_counter() - started] if text or chosen else []
                    if tell and len(arrivals) >= tell[0]:
                        tell[1].set()
        return Answer("".join(texts), tuple(ids), usage["completion_tokens"], usage["prompt_tokens"], tuple(arrivals))

    async def close(self) -> None:
        await self._session.close()
        await self._child.close()

    async def _is_ready(self) -> bool:
        try:
            async with self._session.get("http://w/health") as response:
                return response.status == 200 and (await response.json())["status"] in ("ready", "ok")
        except aiohttp.ClientError:
            return False


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[Any]:
    async for line in response.content:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])
