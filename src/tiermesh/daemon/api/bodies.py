"""Reading request bodies: JSON as RFC 8259 has it, an object at the top, or an error that says what to mend."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, NoReturn

from aiohttp import web
from aiohttp.typedefs import Handler

from tiermesh.config import PolicyDocument
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.errors import BodyTooLarge, InvalidConfig, InvalidInput, Unavailable
from tiermesh.protocol import quick_json
from tiermesh.types import Policy

BODY_S = 60.0
"""For the whole body to come: the default limit over a poor wireless link, many times over."""


MAX_HELD_BYTES = 512 * 1024 * 1024
"""Bodies of all requests that are here, whether they come in, wait or run. Parsed they take about twice as much."""


class BodyLimit:
    """What the policy says now, read once for each policy; the node's own file until there is one that can be read.

    And what all bodies together may take: whoever sends many large ones at once takes the memory of the others.
    """

    def __init__(self, otherwise: int, *, most_held: int = MAX_HELD_BYTES) -> None:
        self._otherwise = otherwise
        self._most_held = most_held
        self._held = 0
        self._policy, self._bytes = Policy(), otherwise

    def of(self, policy: Policy) -> int:
        """Bytes."""
        if policy is not self._policy:
            self._policy, self._bytes = policy, _limit_in(policy, self._otherwise)
        return self._bytes

    def hold(self, request: web.Request, more: int) -> None:
        """A part of this request's body came. Raises `Unavailable` where there is no room, but for a body alone."""
        own = request.get(BODY_BYTES, 0)
        if self._held > own and self._held + more > self._most_held:
            raise Unavailable("this node has no room for more requests of this size; try again, or ask another node")
        self._held += more
        request[BODY_BYTES] = own + more

    def release(self, request: web.Request) -> None:
        """The request is over."""
        self._held -= request.get(BODY_BYTES, 0)


BODY_LIMIT = web.AppKey("tiermesh-body-limit", BodyLimit)
BODY_BYTES = web.RequestKey("tiermesh-body-bytes", int)
"""What was read so far: a body that comes in chunks says nothing of its length beforehand."""


@web.middleware
async def count_bodies(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gives back the room that a request's body took."""
    try:
        return await handler(request)
    finally:
        request.app[BODY_LIMIT].release(request)


async def read_object(request: web.Request, *, leeway: int = 1) -> dict[str, Any]:
    """The body as an object, up to `leeway` times the policy's limit. Raises `BodyTooLarge` or `InvalidInput`."""
    body = await _read(request, leeway * request.app[BODY_LIMIT].of(request.app[CONTEXT].policy()))
    try:
        parsed = quick_json.decode(body)
    except ValueError:
        parsed = _explained(body)
    except RecursionError:
        raise InvalidInput("the body is nested too deeply") from None
    if not isinstance(parsed, dict):
        raise InvalidInput(f"the body must be a JSON object, not {type(parsed).__name__}")
    return parsed


def _explained(body: bytes) -> object:
    """The body as `json` reads it, which says what is wrong."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_number, parse_float=_finite, parse_int=_whole)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the body is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise InvalidInput(
            f"the body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except RecursionError:
        raise InvalidInput("the body is nested too deeply") from None
    except ValueError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from None


async def _read(request: web.Request, limit: int) -> bytes:
    try:
        if request.content.is_eof():  # most bodies come with their heads, and no clock is needed
            return await _read_on(request, limit)
        async with asyncio.timeout(BODY_S):
            return await _read_on(request, limit)
    except web.RequestPayloadError as error:
        raise InvalidInput(f"the body is not what its headers say: {' '.join(str(error).split())}") from None
    except TimeoutError:
        raise InvalidInput(f"the body did not come within {BODY_S:g} s") from None


async def _read_on(request: web.Request, limit: int) -> bytes:
    parts, size, room = [], 0, request.app[BODY_LIMIT]
    while part := await request.content.readany():
        parts.append(part)
        size += len(part)
        room.hold(request, len(part))
        if size > limit:
            raise BodyTooLarge(f"the body is larger than the {limit} bytes read (limits.max_body_bytes)")
    return b"".join(parts)


def _limit_in(policy: Policy, otherwise: int) -> int:
    try:
        return PolicyDocument.from_body(policy.body).limits.max_body_bytes if policy.body else otherwise
    except InvalidConfig:
        return otherwise


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python reads no more than some thousand digits
        raise ValueError(f"{text[:20]}... is too large a number") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large a number")
    return number
