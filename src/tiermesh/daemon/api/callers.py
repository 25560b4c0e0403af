"""Whose request it is, as far as the queue must know."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from tiermesh.daemon.api.bodies import BODY_BYTES
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.daemon.ask import PRIORITIES, Caller, Priority
from tiermesh.errors import InvalidInput
from tiermesh.protocol import headers

_PRIORITIES: Mapping[str, Priority] = {priority: priority for priority in PRIORITIES}


def caller_of(request: web.Request) -> Caller:
    """By the key that it shows, else by its address: a key that all share names nobody. Its body was read.

    Raises `InvalidInput` for a priority that is none.
    """
    priority = _PRIORITIES.get(request.headers.get(headers.PRIORITY, "normal").lower())
    if priority is None:
        raise InvalidInput(f"{headers.PRIORITY}: must be high, normal or low", param=headers.PRIORITY)
    key = request.headers.get("Authorization", "").rpartition(" ")[2] or request.headers.get("X-Api-Key", "")
    if not key or key == request.app[CONTEXT].passport.token:
        key = request.remote or ""
    resource = request.match_info.route.resource
    assert resource is not None, "whoever asks for this has a route"
    return Caller(key, priority, request.get(BODY_BYTES, 0), resource.canonical)
