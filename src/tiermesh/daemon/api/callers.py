"""Whose request it is, as far as the queues must know: the own one of prompts, and that of jobs, which all share."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping

from aiohttp import web

from tiermesh.daemon.api.bodies import BODY_BYTES
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.daemon.ask import PRIORITIES, Caller, Priority
from tiermesh.errors import InvalidInput
from tiermesh.protocol import headers

DIGEST_LETTERS = 12
"""Of a key: enough to tell a mesh's callers apart."""

_PRIORITIES: Mapping[str, Priority] = {priority: priority for priority in PRIORITIES}


def caller_of(request: web.Request) -> Caller:
    """By the key that it shows, else by its address: a key that all share names nobody. Its body was read.

    Raises `InvalidInput` for a priority that is none.
    """
    priority = _PRIORITIES.get(request.headers.get(headers.PRIORITY, "normal").lower())
    if priority is None:
        raise InvalidInput(f"{headers.PRIORITY}: must be high, normal or low", param=headers.PRIORITY)
    key = _key(request) or request.remote or ""
    resource = request.match_info.route.resource
    assert resource is not None, "whoever asks for this has a route"
    return Caller(key, priority, request.get(BODY_BYTES, 0), resource.canonical)


def submitter_of(request: web.Request) -> str:
    """Whose job it is, for the whole mesh: this node's id for whoever sits at it, else an address; and which key was
    shown. The key alone names nobody: clients that need none send what all others send. It is a digest, because a
    job's record goes to other nodes."""
    place = request.remote or ""
    if not place or _is_loopback(place):
        place = request.app[CONTEXT].me
    key = _key(request)
    return f"{place} {hashlib.sha256(key.encode()).hexdigest()[:DIGEST_LETTERS]}" if key else place


def _key(request: web.Request) -> str:
    """Its own one; nothing where it shows none, or that of the mesh."""
    key = request.headers.get("Authorization", "").rpartition(" ")[2] or request.headers.get("X-Api-Key", "")
    return "" if key == request.app[CONTEXT].passport.token else key


def _is_loopback(address: str) -> bool:
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(known, "ipv4_mapped", None)
    return bool((mapped or known).is_loopback)
