"""`POST /api/nodes/{name}/drain`, `.../resume`, `.../remove`, and the doors by which nodes pass such orders on."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from tiermesh.adapters.peer_requests import DRAIN_PATH, REMOVE_PATH
from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.nodes import NodeDesk, Order
from tiermesh.errors import InvalidInput
from tiermesh.protocol.cluster import NodeName, NodeOrderReport
from tiermesh.types import NodeId

ORDERS: tuple[Order, ...] = ("drain", "resume", "remove")


def register_nodes(app: web.Application, desk: NodeDesk) -> None:
    """Add the routes, public and between nodes."""

    async def take(request: web.Request, *, order: Order) -> web.Response:
        await read_object(request)
        member = await desk.order(order, request.match_info["name"])
        report = NodeOrderReport(node=NodeName(id=member.id, name=member.status.name), order=order)
        return web.json_response(report.model_dump(mode="json"))

    async def drain(request: web.Request) -> web.Response:
        draining = (await read_object(request)).get("draining")
        if not isinstance(draining, bool):
            raise InvalidInput("draining: must be true or false", param="draining")
        desk.drain_here(draining)
        return web.json_response({"draining": draining})

    async def remove(request: web.Request) -> web.Response:
        node = (await read_object(request)).get("node")
        if not isinstance(node, str):
            raise InvalidInput("node: must be a node's id", param="node")
        desk.remove_here(NodeId(node))
        return web.json_response({"node": node})

    for order in ORDERS:
        app.router.add_post(f"/api/nodes/{{name}}/{order}", partial(take, order=order))
    app.router.add_post(DRAIN_PATH, drain)
    app.router.add_post(REMOVE_PATH, remove)
