"""One streamed chat as its client gets it: words, tokens, and the times between them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp


@dataclass(slots=True)
class Heard:
    """Everything that came. `tokens` are those that the chunks carried, `told` the number that usage gives."""

    node: str = ""
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    identities: set[tuple[object, ...]] = field(default_factory=set)
    chunks: int = 0
    reason: str | None = None
    told: int | None = None
    error: str | None = None
    done: bool = False
    first_s: float = 0.0
    pause_s: float = 0.0
    """The longest, the wait for the first word and for the end included."""

    @property
    def whole(self) -> bool:
        """One stream, ended properly, with a reason, and figures that are right."""
        ended = self.error is None and self.done and self.reason is not None
        return ended and len(self.identities) == 1 and self.told == len(self.tokens)


def question(model: str, text: str, tokens: int) -> dict[str, Any]:
    """A greedy one."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "max_tokens": tokens,
        "temperature": 0,
    }


async def listen(http: aiohttp.ClientSession, url: str, body: Mapping[str, Any], heard: Heard) -> Heard:
    """Ask, and fill in `heard` while the answer comes. What goes wrong is in it too."""
    loop = asyncio.get_running_loop()
    began = last = loop.time()
    try:
        async with http.post(f"{url}/v1/chat/completions", json=body) as reply:
            heard.node = reply.headers.get("X-Mesh-Node", "")
            if reply.status != 200:
                heard.error = f"HTTP {reply.status}: {(await reply.text())[:300]}"
                return heard
            async for line in reply.content:
                now = loop.time()
                heard.pause_s, last = max(heard.pause_s, now - last), now
                if line.startswith(b"data: "):
                    _take(heard, line[6:].strip())
                    heard.first_s = heard.first_s or now - began
    except (aiohttp.ClientError, OSError, ValueError, LookupError, TimeoutError) as error:
        heard.error = f"{type(error).__name__}: {error}"
    heard.pause_s = max(heard.pause_s, loop.time() - last)
    return heard


def _take(heard: Heard, data: bytes) -> None:
    if heard.done:
        heard.error = "something after the end"
    elif data == b"[DONE]":
        heard.done = True
    else:
        _take_chunk(heard, json.loads(data))


def _take_chunk(heard: Heard, chunk: Mapping[str, Any]) -> None:
    if "error" in chunk:
        heard.error = str(chunk["error"])
        return
    heard.chunks += 1
    heard.identities.add((chunk["id"], chunk["created"], chunk["model"]))
    for choice in chunk["choices"]:
        heard.text += choice["delta"].get("content") or ""
        heard.tokens += choice.get("token_ids") or ()
        heard.reason = choice["finish_reason"] or heard.reason
    if chunk.get("usage"):
        heard.told = chunk["usage"]["completion_tokens"]
