"""`POST /v1/responses`."""

from __future__ import annotations

from aiohttp import web

from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.daemon.api.response_telling import ResponseTelling
from tiermesh.daemon.api.translate_responses import chat_body
from tiermesh.daemon.api.translated import answered, asking
from tiermesh.protocol.responses import ResponsesRequest
from tiermesh.protocol.validation import validated


def register_responses(app: web.Application) -> None:
    """Add the route."""
    app.router.add_post("/v1/responses", responses)


async def responses(request: web.Request) -> web.StreamResponse:
    """One turn of a conversation that the client keeps."""
    asked = validated(ResponsesRequest, await read_object(request))
    ask = asking(request, chat_body(asked), model=asked.model, stream=bool(asked.stream))
    created_at = float(int(request.app[CONTEXT].wall()))
    return await answered(
        request, ask, lambda candidate: ResponseTelling(asked, candidate.model.name, created_at=created_at)
    )
