"""What answers a prompt on a node. Two kinds exist: an OpenAI-compatible server, and the local kernel's worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from tiermesh.types import EngineInfo, Load, Model


class Reply(msgspec.Struct, frozen=True):
    """An HTTP answer whose head has come. `chunks` yields the body as it arrives and may be read once.

    A body that breaks off raises `EngineFailed` from `chunks`; it never just ends.
    """

    status: int
    content_type: str
    chunks: AsyncIterator[bytes]
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)


class Engine(Protocol):
    """One engine of this node. All methods are called on the daemon's loop."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def models(self) -> tuple[Model, ...]:
        """What it serves now; empty while it is down."""

    @property
    def load(self) -> Load: ...

    async def start(self) -> None:
        """Begin watching or be ready to be started on demand; returns at once. Call once."""

    async def close(self) -> None:
        """Stop, and wait until everything that `start` set up is gone. May be called twice."""

    def chat(self, body: Mapping[str, object]) -> AbstractAsyncContextManager[Reply]:
        """Send an OpenAI chat-completion request (`model` is this engine's own name for it) and give the reply's head.

        Leaving the context stops the generation. Raises `EngineFailed` when no head came, `Unavailable` when busy.
        """

    def embed(self, body: Mapping[str, object]) -> AbstractAsyncContextManager[Reply]:
        """The same for OpenAI's embeddings; what can't give them answers 4xx."""
