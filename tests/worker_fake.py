"""A scripted inference worker: the kernel's command line and HTTP without a model, so that it starts at once.

`python -m tests.worker_fake --socket S --model FOLDER --name N ...`, as the engine starts a real one. What it does is
said by its model's folder and by the last message:

- `FOLDER/slots`: how many slots it tells (default 4); `FOLDER/progress`: it is loading, that far, while this is there;
- `die` ends it by SIGKILL before an answer, `die later` after the first event; `hold` answers when its client has left;
- `wait` (and whatever begins so) is answered as soon as there is a file `FOLDER/go`;
- adapters come and go by `/adapters`; one whose name begins with `bad` is refused;
- `fail` breaks the connection off without dying; everything else is answered with the model's name and the text.

It appends its own arguments to `FOLDER/started`, a line a start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from aiohttp import web


class Worker:
    def __init__(self, folder: Path, name: str, adapters: list[str]) -> None:
        self.folder = folder
        self.name = name
        self.adapters = adapters
        self.active = 0

    async def health(self, _: web.Request) -> web.Response:
        progress = self._read("progress", "")
        return web.json_response(
            {
                "status": "loading" if progress else "ready",
                "model": self.name,
                "active": self.active,
                "queued": 0,
                "slots": 0 if progress else int(self._read("slots", "4")),
                "progress": float(progress or 1.0),
                "precision": "fp32",
                "context_length": 4096,
                "adapters": self.adapters,
            }
        )

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.active += 1
        try:
            return await self._answer(request, body["model"], body["messages"][-1]["content"])
        finally:
            self.active -= 1

    async def embed(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({"object": "list", "data": [], "model": body["model"]})

    async def add_adapter(self, request: web.Request) -> web.Response:
        name = (await request.json())["name"]
        if name.startswith("bad"):
            return web.json_response({"error": {"message": f"{name} is for another model"}}, status=400)
        self.adapters.append(name)
        return web.json_response({"name": name})

    async def drop_adapter(self, request: web.Request) -> web.Response:
        self.adapters.remove(request.match_info["name"])
        return web.json_response({})

    async def _answer(self, request: web.Request, model: str, text: str) -> web.StreamResponse:
        if text == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "fail":
            assert request.transport is not None
            request.transport.abort()
        while text.startswith("wait") and not (self.folder / "go").exists():
            await asyncio.sleep(0.01)
        if text == "hold":
            await asyncio.Event().wait()
        if text == "die later":
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b'data: {"choices": []}\n\n')
            os.kill(os.getpid(), signal.SIGKILL)
        return web.json_response({"choices": [{"message": {"content": f"{model}: {text}"}}]})

    def _read(self, name: str, default: str) -> str:
        try:
            return (self.folder / name).read_text()
        except FileNotFoundError:
            return default


async def _serve(options: argparse.Namespace) -> None:
    worker = Worker(options.model, options.name, [adapter.partition("=")[0] for adapter in options.adapter])
    app = web.Application()
    app.router.add_get("/health", worker.health)
    app.router.add_post("/v1/chat/completions", worker.chat)
    app.router.add_post("/v1/embeddings", worker.embed)
    app.router.add_post("/adapters", worker.add_adapter)
    app.router.add_delete("/adapters/{name:.+}", worker.drop_adapter)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    options.socket.unlink(missing_ok=True)
    await web.UnixSite(runner, str(options.socket)).start()
    await asyncio.to_thread(sys.stdin.read)  # ends with whoever started it


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--name")
    parser.add_argument("--adapter", action="append", default=[])
    options, _ = parser.parse_known_args()
    with (options.model / "started").open("a") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    asyncio.run(_serve(options))


if __name__ == "__main__":
    main()
