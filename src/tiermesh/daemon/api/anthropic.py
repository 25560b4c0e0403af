"""`POST /v1/messages`, for Anthropic's clients."""

from __future__ import annotations

from aiohttp import web

from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.translate_anthropic import MessageTelling, chat_body
from tiermesh.daemon.api.translated import answered, asking
from tiermesh.protocol.anthropic import MessagesRequest
from tiermesh.protocol.validation import validated


def register_anthropic(app: web.Application) -> None:
    """Add the route."""
    app.router.add_post("/v1/messages", messages)


async def messages(request: web.Request) -> web.StreamResponse:
    """One turn of a conversation."""
    asked = validated(MessagesRequest, await read_object(request))
    ask = asking(request, chat_body(asked), model=asked.model, stream=bool(asked.stream))
    return await answered(request, ask, lambda candidate: MessageTelling(asked, candidate.model.name))
