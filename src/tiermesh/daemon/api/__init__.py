"""The HTTP API of one node: `api = make_app(context)`, and the rest is its business."""

from __future__ import annotations

from aiohttp import web

from tiermesh.daemon.api.anthropic import register_anthropic
from tiermesh.daemon.api.bodies import BODY_LIMIT, BodyLimit, count_bodies
from tiermesh.daemon.api.context import CONTEXT, Context
from tiermesh.daemon.api.diagnose import register_diagnosis
from tiermesh.daemon.api.errors import map_errors
from tiermesh.daemon.api.ollama import register_ollama
from tiermesh.daemon.api.openai_completions import register_completions
from tiermesh.daemon.api.peer import register_peer
from tiermesh.daemon.api.public import register_public
from tiermesh.daemon.api.responses import register_responses
from tiermesh.daemon.api.route import register_route
from tiermesh.daemon.api.trust import check_trust

__all__ = ["CONTEXT", "Context", "make_app"]


def make_app(context: Context, *, max_body_bytes: int) -> web.Application:
    """Both planes, behind middlewares for errors, for the room that bodies take, and for trust.

    `max_body_bytes` holds until there is a policy.

    Run it with `handler_cancellation=True`: a client that leaves must stop the work that was done for it.
    """
    app = web.Application(middlewares=[map_errors, count_bodies, check_trust], client_max_size=max_body_bytes)
    app[CONTEXT] = context
    app[BODY_LIMIT] = BodyLimit(max_body_bytes)
    register_public(app)
    register_route(app)
    register_completions(app)
    register_responses(app)
    register_ollama(app)
    register_anthropic(app)
    register_diagnosis(app)
    register_peer(app)
    return app
