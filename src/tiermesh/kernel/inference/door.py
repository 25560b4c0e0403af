"""Bodies in, answers and errors out: what all routes of the worker share."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from tiermesh.errors import EngineFailed, InvalidInput, TiermeshError, Unavailable
from tiermesh.kernel.inference import answers

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SURROGATE = "\\ud"
"""How half of a character begins in JSON that is written in ASCII; its other half must follow."""


async def json_body(request: web.Request) -> object:
    """Raises `InvalidInput` when it is none."""
    try:
        text = await request.text()
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}") from error
    if SURROGATE in text.lower():  # the usual case costs no second look
        _refuse_half_characters(body)
    return body


def json_response(body: answers.Json, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """An answer in JSON; text stays readable."""
    text = json.dumps(body, ensure_ascii=False)
    return web.Response(text=text, status=status, content_type="application/json", headers=headers)


async def stream_response(request: web.Request) -> web.StreamResponse:
    """An event stream whose head has been sent."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    return response


@web.middleware
async def errors_answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error of ours in OpenAI's shape, with its status."""
    try:
        try:
            return await handler(request)
        except RecursionError as error:
            raise InvalidInput("the body is nested too deeply") from error
        except (TiermeshError, web.HTTPException):
            raise
        except Exception as error:
            log.exception("a mistake of our own")
            raise EngineFailed(f"the worker failed: {type(error).__name__}: {error}") from error
    except TiermeshError as error:
        headers = {"Retry-After": f"{error.retry_after_s:.0f}"} if isinstance(error, Unavailable) else None
        return json_response(answers.error_body(error), error.http_status, headers)


def _refuse_half_characters(body: object) -> None:
    """Python's reader lets them pass, and no tokenizer takes them."""
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise InvalidInput(f"the body holds half of a character, \\u{half:04x}, without its other half") from None
