"""Reading request bodies: JSON as RFC 8259 has it, an object at the top, or an error that says what to mend."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, NoReturn

from aiohttp import web

from tiermesh.config import PolicyDocument
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.errors import BodyTooLarge, InvalidConfig, InvalidInput

BODY_S = 60.0
"""For the whole body to come: the default limit over a poor wireless link, many times over."""


async def read_object(request: web.Request, *, leeway: int = 1) -> dict[str, Any]:
    """The body as an object, up to `leeway` times the policy's limit. Raises `BodyTooLarge` or `InvalidInput`."""
    text = await _read_text(request, leeway * _limit(request))
    try:
        parsed = json.loads(text, parse_constant=_no_number, parse_float=_finite, parse_int=_whole)
    except json.JSONDecodeError as error:
        raise InvalidInput(
            f"the body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except RecursionError:
        raise InvalidInput("the body is nested too deeply") from None
    except ValueError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise InvalidInput(f"the body must be a JSON object, not {type(parsed).__name__}")
    return parsed


async def _read_text(request: web.Request, limit: int) -> str:
    try:
        async with asyncio.timeout(BODY_S):
            return (await request.clone(client_max_size=limit).read()).decode("utf-8")
    except web.HTTPRequestEntityTooLarge:
        raise BodyTooLarge(f"the body is larger than the {limit} bytes read (limits.max_body_bytes)") from None
    except web.RequestPayloadError as error:
        raise InvalidInput(f"the body is not what its headers say: {' '.join(str(error).split())}") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the body is not UTF-8 (byte {error.start})") from None
    except TimeoutError:
        raise InvalidInput(f"the body did not come within {BODY_S:g} s") from None


def _limit(request: web.Request) -> int:
    """What the policy says now; the node's own file until there is a policy, or where it can't be read."""
    try:
        body = request.app[CONTEXT].policy().body
        return PolicyDocument.from_body(body).limits.max_body_bytes if body else request.client_max_size
    except InvalidConfig:
        return request.client_max_size


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
