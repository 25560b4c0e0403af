"""From an HTTP answer to a typed result or a typed error."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError

from tiermesh.errors import DeadlineExceeded, EngineFailed, InvalidInput, NotFound, TiermeshError, Unavailable

ModelT = TypeVar("ModelT", bound=BaseModel)

_BY_STATUS: Mapping[int, type[TiermeshError]] = {
    404: NotFound,
    502: EngineFailed,
    503: Unavailable,
    504: DeadlineExceeded,
}


async def checked(response: aiohttp.ClientResponse) -> object:
    """The JSON body of a successful answer. Raises what the error body says, or else the status."""
    raw = await response.read()
    try:
        body: object = json.loads(raw)
    except ValueError:
        body = None
    if response.status == 200 and body is not None:
        return body
    if response.status == 200:
        raise EngineFailed(f"{response.url} answered without JSON: is it a Tiermesh daemon?")
    raise error_of(body, response.status, response.headers.get("Retry-After"))


def decoded(model: type[ModelT], body: object) -> ModelT:
    """The typed result. Raises `EngineFailed` when the answer has another shape."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise EngineFailed(f"the answer has another shape than expected: is it a Tiermesh daemon? {error}") from error


def error_of(body: object, status: int = 500, retry_after: str | None = None) -> TiermeshError:
    """The error that an `{"error": {...}}` body stands for; OpenAI's shape has our type in `code`."""
    detail = body.get("error") if isinstance(body, dict) else None
    detail = detail if isinstance(detail, dict) else {}
    message = str(detail.get("message") or f"HTTP {status} and no reason given: is it a Tiermesh daemon?")
    fallback = _BY_STATUS.get(status) or (InvalidInput if 400 <= status < 500 else TiermeshError)
    kind = _by_type().get(str(detail.get("code") or detail.get("type")), fallback)
    if issubclass(kind, InvalidInput):
        param = detail.get("param")
        return kind(message, param=None if param is None else str(param))
    if issubclass(kind, Unavailable):
        return kind(message, retry_after_s=_seconds(retry_after))
    return kind(message)


def unreachable(url: str, error: Exception) -> Unavailable:
    """Nobody answers at all."""
    if isinstance(error, aiohttp.ClientSSLError):
        reason = getattr(getattr(error, "os_error", None), "reason", None)
        told = str(reason).replace("_", " ").lower() if reason else str(error)
        return Unavailable(f"no TLS with {url}: {told}. A daemon speaks plain http://, unless a proxy is before it")
    system = getattr(error, "os_error", None)
    reason = os.strerror(system.errno) if system and (system.errno or 0) > 0 else getattr(system, "strerror", None)
    return Unavailable(f"no daemon answers at {url}: {str(reason or error).lower()}. Is `mesh up` running there?")


def _by_type() -> dict[str, type[TiermeshError]]:
    """Each type that is told, and the class that gave it its name: others inherit it, wherever they are defined."""
    return {kind.type: kind for kind in _tree(TiermeshError) if "type" in vars(kind)}


def _tree(kind: type[TiermeshError]) -> Iterator[type[TiermeshError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)


def _seconds(retry_after: str | None) -> float:
    try:
        return float(retry_after or 1.0)
    except ValueError:
        return 1.0
