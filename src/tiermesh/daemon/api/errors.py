"""The one place where errors become answers."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from tiermesh.daemon.api import translate_anthropic, translate_ollama
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.daemon.api.relay import request_id
from tiermesh.errors import InvalidInput, NotFound, TiermeshError, Unavailable
from tiermesh.protocol.errors import ErrorBody, ErrorDetail, openai_error
from tiermesh.protocol.headers import REQUEST_ID

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_DIALECTS: Mapping[str, Callable[[TiermeshError], Mapping[str, object]]] = {
    **dict.fromkeys(translate_anthropic.PATHS, translate_anthropic.error_body),
    **dict.fromkeys(translate_ollama.PATHS, translate_ollama.error_body),
}
"""Routes whose errors are neither OpenAI's nor our own."""


class MethodNotAllowed(InvalidInput):
    """The route exists, the method doesn't."""

    type = "method_not_allowed"
    http_status = 405


@web.middleware
async def map_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Outermost middleware: whatever goes wrong leaves as JSON, and is logged here only."""
    try:
        return await handler(request)
    except TiermeshError as error:
        return _response(request, error)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        wrong = MethodNotAllowed(f"{request.method} is not possible at {request.path}; allowed: {allowed}")
        return _response(request, wrong, {"Allow": allowed})
    except web.HTTPNotFound:
        return _response(request, NotFound(f"nothing at {request.path}; there are: {', '.join(_routes(request.app))}"))
    except web.HTTPException:
        raise
    except RecursionError:
        return _response(request, InvalidInput("the body is nested too deeply"))
    except ConnectionResetError:
        log.debug("%s %s: the client left", request.method, request.path)
        return web.Response(status=499)  # nobody reads it; nginx's name for this
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return _response(request, TiermeshError("internal error; the node's log has the details"), logged=True)


def error_data(request: web.Request, error: TiermeshError) -> str:
    """The error as JSON, in the dialect of the route that was asked."""
    if (told := _DIALECTS.get(request.path)) is not None:
        return json.dumps(told(error))
    if request.path.startswith("/v1/"):
        return json.dumps(openai_error(error).model_dump())
    node = request.app[CONTEXT].name
    param = error.param if isinstance(error, InvalidInput) else None
    body = ErrorBody(error=ErrorDetail(type=error.type, message=str(error), param=param, node=node))
    return json.dumps(body.model_dump(mode="python"))


def _response(
    request: web.Request, error: TiermeshError, headers: dict[str, str] | None = None, *, logged: bool = False
) -> web.Response:
    if not logged:
        level = logging.WARNING if error.http_status >= 500 else logging.DEBUG
        told = (request_id(request), request.method, request.path, error.http_status, error.type, error)
        log.log(level, "%s: %s %s: %s %s: %s", *told)
    headers = {REQUEST_ID: request_id(request), **(headers or {})}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(
        status=error.http_status, text=error_data(request, error), content_type="application/json", headers=headers
    )


def _routes(app: web.Application) -> list[str]:
    """The public routes."""
    found = {
        f"{route.method} {route.resource.canonical}"
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD" and not route.resource.canonical.startswith("/mesh/")
    }
    return sorted(found, key=lambda line: line.split()[::-1])
