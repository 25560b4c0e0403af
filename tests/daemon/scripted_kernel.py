"""An engine that can continue, without a model: the kernel's dialect, and a script of what goes wrong.

What it says depends on the seed and on what it was asked, token by token, and on nothing else: two of them with one
digest say the same, and go on with one another's answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tests.daemon.still_mesh import StillMesh, still_mesh, until

from tiermesh.adapters.engines import Reply
from tiermesh.daemon.dispatch import Dispatch
from tiermesh.errors import EngineFailed, Unavailable, WorkerDied
from tiermesh.types import EngineInfo, Load, Model, Tier

LENGTH = 12
"""Tokens of an answer, the one that ends it included."""
SILENT = 7
"""A token that shows nothing, like the first half of a character."""


@dataclass
class Script:
    """What goes wrong, and when: positions count tokens of the whole answer. Each is done with once it happened."""

    break_at: int | None = None
    """Breaks off before this token; 0: after the role, LENGTH: between the finish reason and the usage."""
    breaks: int = 1
    """How often."""
    stall_at: int | None = None
    dies: bool = False
    """What breaks is the worker, not the connection."""
    error_at: int | None = None
    """An error event before this token."""
    refuse: int | None = None
    """Answers with this status."""
    retry_after_s: float = 0.05
    """What it says then, if it is 503."""
    mute: bool = False
    """Never says anything."""
    pace_s: float = 0.0
    slots: int = 4


@dataclass
class ScriptedKernel:
    """One engine of one node; `requests` are the bodies it got."""

    model: Model
    script: Script = field(default_factory=Script)
    requests: list[dict[str, Any]] = field(default_factory=list)
    active: int = 0
    abandoned: int = 0
    stalled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("kernel", "kernel", "ready", can_continue=self.model.can_continue)

    @property
    def models(self) -> tuple[Model, ...]:
        return (self.model,)

    @property
    def load(self) -> Load:
        return Load(self.active, self.script.slots)

    async def start(self) -> None: ...
    async def close(self) -> None: ...

    def embed(self, body: Mapping[str, object]) -> Any:
        raise NotImplementedError

    @asynccontextmanager
    async def chat(self, body: Mapping[str, Any]) -> AsyncIterator[Reply]:
        self.requests.append(dict(body))
        self.active += 1
        ended = False
        try:
            if self.script.refuse == 503:
                raise Unavailable("busy", retry_after_s=self.script.retry_after_s)
            if self.script.refuse is not None:
                yield Reply(self.script.refuse, "application/json", _bytes(b'{"error": {"message": "no"}}'))
                return
            if self.script.mute:
                await asyncio.Event().wait()
            if not body.get("stream"):
                yield Reply(200, "application/json", _bytes(json.dumps(whole(body)).encode()))
                return
            yield Reply(200, "text/event-stream", self._events(body))
            ended = True
        finally:
            self.active -= 1
            self.abandoned += not ended

    async def _events(self, body: Mapping[str, Any]) -> AsyncIterator[bytes]:
        begun = list(body.get("resume_token_ids") or ())
        chunk = _Chunks(self.model.name, bool(body.get("return_token_ids")))
        if not begun:
            yield chunk({"role": "assistant", "content": ""}, [])
        limit = int(body.get("max_tokens") or LENGTH)
        ids = begun
        while len(ids) < min(limit, LENGTH - 1):
            position = len(ids)
            await self._mishap(position)
            if self.script.error_at == position:
                self.script.error_at = None
                yield b'data: {"error": {"message": "out of memory"}}\n\n'
            token = token_at(body, position)
            ids = [*ids, token]
            yield chunk(delta_of(body, position), [token])
        await self._mishap(len(ids))
        ended = [] if len(ids) == limit else [0]
        yield chunk({}, ended, "length" if len(ids) == limit else "tool_calls" if body.get("tools") else "stop")
        await self._mishap(LENGTH)
        if (body.get("stream_options") or {}).get("include_usage"):
            yield chunk.usage(usage(body, len(ids) + len(ended)))
        yield b"data: [DONE]\n\n"

    async def _mishap(self, position: int) -> None:
        script = self.script
        if script.pace_s:
            await asyncio.sleep(script.pace_s)
        if script.break_at == position:
            script.breaks -= 1
            script.break_at = script.break_at if script.breaks else None
            raise WorkerDied("the worker died") if script.dies else EngineFailed("the connection broke")
        if script.stall_at == position:
            script.stall_at = None
            self.stalled.set()
            await asyncio.Event().wait()


class _Chunks:
    """Chunks as the kernel writes them, with an identity of their own for each stream."""

    count = 0

    def __init__(self, model: str, with_ids: bool) -> None:
        _Chunks.count += 1
        self._head = {"id": f"chatcmpl-{_Chunks.count}", "object": "chat.completion.chunk", "created": _Chunks.count}
        self._model = model
        self._with_ids = with_ids

    def __call__(self, delta: Mapping[str, Any], ids: list[int], reason: str | None = None) -> bytes:
        told = {"token_ids": ids} if self._with_ids else {}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason, **told}
        return _event({**self._head, "model": self._model, "choices": [choice]})

    def usage(self, counted: Mapping[str, int]) -> bytes:
        return _event({**self._head, "model": self._model, "choices": [], "usage": counted})


def token_at(body: Mapping[str, Any], position: int) -> int:
    """The token that is chosen: the same wherever the same was asked with the same seed."""
    if position == 3:
        return SILENT
    key = f"{body['messages']}{body['seed']}{position}"
    return 10 + int.from_bytes(hashlib.blake2b(key.encode(), digest_size=2).digest())


def delta_of(body: Mapping[str, Any], position: int) -> dict[str, Any]:
    """What a token shows: text, or in a request with tools one call, from its second token on."""
    token = token_at(body, position)
    if token == SILENT:
        return {}
    if not body.get("tools") or position == 0:
        return {"content": f'"{token}", '}
    call: dict[str, Any] = {"index": 0, "function": {"arguments": f"{token} "}}
    if position == 1:
        call |= {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": f"{token} "}}
    return {"tool_calls": [call]}


def text_of(body: Mapping[str, Any], count: int = LENGTH - 1) -> str:
    """All that an undisturbed answer says."""
    return "".join(delta_of(body, position).get("content", "") for position in range(count))


def usage(body: Mapping[str, Any], completion: int) -> dict[str, int]:
    prompt = len(str(body["messages"]))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def whole(body: Mapping[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": text_of({"seed": 0, **body})}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage(body, LENGTH)}


@asynccontextmanager
async def kernel_mesh(
    kernels: Mapping[str, str],
    *,
    scripts: Mapping[str, Script] | None = None,
    gateway_options: Mapping[str, Any] | None = None,
) -> AsyncIterator[tuple[StillMesh, dict[str, ScriptedKernel]]]:
    """`desk` without an engine, and nodes (name to digest) with a kernel each, whose model is called `m`.

    The digest `llama` can't continue, and `other` is a model called `o`.
    """
    tiers: dict[str, Tier | None] = {"desk": None, **dict.fromkeys(kernels, None)}
    async with still_mesh(tiers, {}, gateway_options=gateway_options) as mesh:
        made = {}
        for name, digest in kernels.items():
            called = "o" if digest == "other" else "m"
            served = Model(called, digest, 1, "kernel", "warm", can_continue=digest != "llama")
            script = (scripts or {}).get(name, Script())
            made[name] = mesh.nodes[name].engines["kernel"] = ScriptedKernel(served, script)
        publish(mesh, made)
        yield mesh, made
        await until(lambda: all(_holds_nothing(node.gateway.dispatch) for node in mesh.nodes.values()))


def _holds_nothing(dispatch: Dispatch) -> bool:
    """Every reservation was given back, and nobody waits."""
    held = dispatch._reserved_here or any(dispatch._loads.in_flight.values()) or dispatch.attempts
    return not held and not dispatch.waiting.lengths()


def publish(mesh: StillMesh, kernels: Mapping[str, ScriptedKernel]) -> None:
    """A view that says what the engines say."""
    members = dict(mesh.view.members)
    for name, kernel in kernels.items():
        node = mesh.nodes[name].id
        status = replace(members[node].status, tier=1, models=kernel.models, engines=(kernel.info,), load=kernel.load)
        members[node] = replace(members[node], status=status)
    mesh.set_view(replace(mesh.view, version=mesh.view.version + 1, members=members))


async def _bytes(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"
