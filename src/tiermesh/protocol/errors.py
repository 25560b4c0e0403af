"""What an error looks like. `/v1/*` speaks OpenAI's dialect, every other route our own."""

from __future__ import annotations

from tiermesh.protocol.validation import Wire


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
