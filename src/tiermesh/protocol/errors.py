"""What an error looks like. `/v1/*` speaks OpenAI's dialect, every other route our own."""

from __future__ import annotations

from collections.abc import Mapping

from tiermesh.errors import InvalidInput, TiermeshError
from tiermesh.protocol.validation import Wire

_OPENAI_TYPES: Mapping[int, str] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ErrorDetail(Wire):
    """`type` is one of `tiermesh.errors`' types; `param` the field that was wrong; `node` who says so."""

    type: str
    message: str
    param: str | None = None
    node: str | None = None


class ErrorBody(Wire):
    """`{"error": {...}}`."""

    error: ErrorDetail


class OpenAIErrorDetail(Wire):
    """`type` is OpenAI's (`invalid_request_error`, `server_error`, ...); `code` is our own type."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAIErrorBody(Wire):
    """`{"error": {...}}` as OpenAI's clients read it."""

    error: OpenAIErrorDetail


def openai_error(error: TiermeshError) -> OpenAIErrorBody:
    """An error as OpenAI's clients read it."""
    kind = _OPENAI_TYPES.get(error.http_status)
    kind = kind or ("server_error" if error.http_status >= 500 else "invalid_request_error")
    param = error.param if isinstance(error, InvalidInput) else None
    return OpenAIErrorBody(error=OpenAIErrorDetail(message=str(error), type=kind, param=param, code=error.type))
