"""What the gateway is asked, and what it answers.

Values on the way of every prompt are msgspec's structs: made in a tenth of the time of a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Literal

import msgspec

from tiermesh.core.complexity import Complexity
from tiermesh.core.routing import Candidate, RouteRequest

REQUEST_TIMEOUT_S = 600.0
"""From question to last byte; what OpenAI's own clients wait. Long answers on slow machines take minutes."""

Task = Literal["chat", "embeddings"]
Priority = Literal["high", "normal", "low"]

PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
"""The first is served first."""


class Caller(msgspec.Struct, frozen=True):
    """Whose request it is: callers take turns in a queue, within one priority."""

    key: str = ""
    priority: Priority = "normal"
    size_bytes: int = 0
    """Of the request as it came: what waits is bounded by it."""
    api: str = "none"
    """The route by which it came, for the metrics."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `body` is an OpenAI request, for what `task` says, whose `model` the gateway replaces."""

    body: Mapping[str, object]
    route: RouteRequest
    stream: bool
    request_id: str
    task: Task = "chat"
    timeout_s: float = REQUEST_TIMEOUT_S
    caller: Caller = Caller()


class Answer(msgspec.Struct, frozen=True):
    """What a candidate said. Either `events` (a stream, whole events a piece, read once) or a whole `body`.

    `status` is 200, or the engine's 4xx verdict on the request.
    """

    candidate: Candidate
    status: int
    content_type: str
    body: bytes
    events: AsyncIterator[bytes] | None
    attempts: int
    waited_s: float = 0.0
    """In the queue, for a slot or a node."""
    loaded: bool = False
    """Was its model not in memory when it was asked?"""
    complexity: Complexity | None = None
    """Of the prompt, where it chose the tier."""
