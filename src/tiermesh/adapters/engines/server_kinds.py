"""What differs between OpenAI-compatible servers: how each is recognised, and what it tells beyond `/v1/models`.

Every kind is recognised by an endpoint of its own, so that nothing else that happens to listen on its usual port (a
daemon of this mesh, say) is taken for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tiermesh.adapters.reasons import reason_of
from tiermesh.errors import EngineFailed
from tiermesh.protocol.headers import NODE
from tiermesh.types import ModelState

PROBE_TIMEOUT_S = 2.0
"""A server on one's own network that takes longer to list its models has other worries."""

MAX_LISTING_BYTES = 4 * 1024 * 1024
"""Thousands of models fit in it."""

_NO_CHAT = re.compile(r"embed|rerank|whisper|(^|[/-])(tts|bge|e5|gte|clip)([-:/]|$)", re.IGNORECASE)
"""Names of models that answer no chat; the list of models doesn't say so itself."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One model as a server lists it. `identity` is whatever tells its weights from another's of the same name."""

    name: str
    state: ModelState = "warm"
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a server serves, and how many requests it works on at once when it says so."""

    kind: str
    models: tuple[Listed, ...] = ()
    slots: int | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """How a server is asked. `base` has no `/v1`."""

    http: aiohttp.ClientSession
    base: str
    headers: Mapping[str, str] = field(default_factory=dict)

    async def get(self, path: str) -> tuple[Any, Mapping[str, str]]:
        """JSON and headers of one of its pages; raises `EngineFailed`, also for anything but a 200."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S), self.http.get(self.base + path, headers=self.headers) as reply:
                body = await reply.content.read(MAX_LISTING_BYTES)
                while not reply.content.at_eof() and len(body) <= MAX_LISTING_BYTES:
                    body += await reply.content.read(MAX_LISTING_BYTES)
                if reply.status != 200:
                    raise EngineFailed(f"{self.base}{path} answered HTTP {reply.status}")
                return json.loads(body), reply.headers
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise EngineFailed(f"{self.base} does not answer: {reason_of(error)}") from error
        except (ValueError, RecursionError):
            raise EngineFailed(f"{self.base}{path} is not JSON") from None

    async def find(self, path: str) -> dict[str, Any] | None:
        """An object at `path`; None when there is none, or when it is a mesh's own, which speaks as Ollama does."""
        try:
            found, headers = await self.get(path)
        except EngineFailed:
            return None
        return found if isinstance(found, dict) and NODE not in headers else None


async def recognise(server: Server) -> str | None:
    """`ollama`, `lmstudio`, `llamacpp`, `vllm`, or None for none of these."""
    for kind in _MARKS:
        if await is_kind(server, kind):
            return kind
    return None


async def is_kind(server: Server, kind: str) -> bool:
    """Does it answer as a server of this kind does?"""
    path, looks_right = _MARKS[kind]
    page = await server.find(path)
    return page is not None and looks_right(page)


async def list_models(server: Server, kind: str) -> Listing:
    """What a server of this kind serves now. Raises `EngineFailed`."""
    page, headers = await server.get("/v1/models")
    if NODE in headers:
        raise EngineFailed(f"{server.base} is a Tiermesh node, not an engine: meet it with --join")
    cards = page.get("data") if isinstance(page, dict) else None
    if not isinstance(cards, list):
        raise EngineFailed(f"{server.base}/v1/models is no list of models")
    cards = [card for card in cards if isinstance(card, dict) and isinstance(card.get("id"), str)]
    cards = [card for card in cards if not _NO_CHAT.search(card["id"])]
    match kind:
        case "ollama":
            return await _list_ollama(server, cards)
        case "lmstudio":
            return await _list_lmstudio(server, cards)
        case "llamacpp":
            props = await server.find("/props") or {}
            slots = props.get("total_slots")
            return Listing(kind, _plain(kind, cards), slots if isinstance(slots, int) and slots > 0 else None)
        case _:
            return Listing(kind, _plain(kind, cards))


def digest(kind: str, name: str, identity: object) -> str:
    """Names weights as well as a server's own words can: equal digests are meant to be equal weights."""
    text = json.dumps([kind, name, identity], sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _plain(kind: str, cards: list[dict[str, Any]]) -> tuple[Listed, ...]:
    """`root` is vLLM's path of the weights, `meta` llama.cpp's sizes; both survive a restart, unlike `created`."""
    return tuple(
        Listed(card["id"], "warm", digest(kind, card["id"], [card.get("root"), card.get("meta")])) for card in cards
    )


async def _list_ollama(server: Server, cards: list[dict[str, Any]]) -> Listing:
    """Ollama names each model's manifest by sha256, and says which are in memory."""
    tags = _objects((await server.find("/api/tags") or {}).get("models"))
    running = _objects((await server.find("/api/ps") or {}).get("models"))
    digests = {str(tag.get("name")): str(tag.get("digest") or "") for tag in tags}
    warm = {str(model.get("name")) for model in running}
    models = []
    for name in (card["id"] for card in cards):
        known = digests.get(name, "")
        manifest = f"sha256:{known.removeprefix('sha256:')}" if known else digest("ollama", name, None)
        models.append(Listed(name, "warm" if name in warm else "cold", manifest))
    return Listing("ollama", tuple(models))


async def _list_lmstudio(server: Server, cards: list[dict[str, Any]]) -> Listing:
    """LM Studio says of each model what it can do, whether it is loaded, and its quantisation."""
    told = {str(m.get("id")): m for m in _objects((await server.find("/api/v0/models") or {}).get("data"))}
    models = []
    for name in (card["id"] for card in cards):
        facts = told.get(name, {})
        if facts.get("type") == "embeddings":
            continue
        state: ModelState = "cold" if facts.get("state") == "not-loaded" else "warm"
        identity = [facts.get(key) for key in ("publisher", "arch", "quantization")]
        models.append(Listed(name, state, digest("lmstudio", name, identity)))
    return Listing("lmstudio", tuple(models))


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _is_vllm(page: Mapping[str, Any]) -> bool:
    return any(card.get("owned_by") == "vllm" for card in _objects(page.get("data")))


_MARKS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], bool]]] = {
    "ollama": ("/api/tags", lambda page: isinstance(page.get("models"), list)),
    "lmstudio": ("/api/v0/models", lambda page: isinstance(page.get("data"), list)),
    "llamacpp": ("/props", lambda page: "default_generation_settings" in page or "total_slots" in page),
    "vllm": ("/v1/models", _is_vllm),
}
"""By kind: a page that no other kind has, and what is on it."""
