"""Reading request bodies: JSON as RFC 8259 has it, an object at the top, or an error that says what to mend."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from aiohttp import web

from tiermesh.errors import InvalidInput


async def read_object(request: web.Request) -> dict[str, Any]:
    """The body as an object. Raises `InvalidInput`; a body that is too large is aiohttp's own 413."""
    try:
        text = (await request.read()).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the body is not UTF-8 (byte {error.start})") from None
    try:
        parsed = json.loads(text, parse_constant=_no_number, parse_float=_finite)
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


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large a number")
    return number
