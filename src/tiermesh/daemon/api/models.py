"""`/api/models`: what training left, over the whole mesh; and the peers' door for it."""

from __future__ import annotations

from aiohttp import web
from pydantic import BaseModel

from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.daemon.api.relay import hang_up, request_id, send
from tiermesh.daemon.serving import FILE_PATH, LIST_PATH, PIN_PATH, REMOVE_PATH, Serving
from tiermesh.errors import InvalidInput, NotFound, TiermeshError, Unavailable
from tiermesh.protocol.serving import MODELS_PATH, SERVED_PATH

BINARY = {"Content-Type": "application/octet-stream"}


def register_models(app: web.Application, serving: Serving) -> None:
    """Add the routes."""

    async def everything(_: web.Request) -> web.Response:
        return _json(await serving.all())

    async def one(request: web.Request) -> web.Response:
        return _json(await serving.find(request.match_info["name"]))

    async def remove(request: web.Request) -> web.Response:
        return _json(await serving.remove(request.match_info["name"]))

    async def pin(request: web.Request) -> web.Response:
        body = await read_object(request)
        if not isinstance(body.get("pinned"), bool):
            raise InvalidInput("pinned: must be true or false", param="pinned")
        return _json(await serving.pin(request.match_info["name"], pinned=body["pinned"]))

    async def file(request: web.Request) -> web.StreamResponse:
        name, wanted = request.match_info["name"], request.match_info["file"]
        try:
            return web.FileResponse(serving.here.file(name, wanted), headers=BINARY)
        except NotFound:
            return await _from_peer(request, name, wanted)

    async def _from_peer(request: web.Request, name: str, wanted: str) -> web.StreamResponse:
        async with serving.file(name, wanted, request_id(request)) as reply:
            if reply.status != 200:
                raise NotFound(f"{name} has no file {wanted}", param="file")
            response = web.StreamResponse(headers=BINARY)
            if length := reply.headers.get("Content-Length"):
                response.content_length = int(length)
            await response.prepare(request)
            try:
                async for chunk in reply.chunks:
                    await send(response, chunk)
            except TiermeshError:
                hang_up(request)  # what is cut off can't be mistaken for what is complete
                return response
            await response.write_eof()
            return response

    async def take(request: web.Request) -> web.Response:
        context = request.app[CONTEXT]
        if context.draining():
            raise Unavailable(f"node {context.name} is leaving the mesh, or was told to rest")
        return web.json_response(await serving.answer(SERVED_PATH, await read_object(request)))

    async def peer(request: web.Request) -> web.Response:
        return web.json_response(await serving.answer(request.path, await read_object(request)))

    async def give(request: web.Request) -> web.StreamResponse:
        body = await read_object(request)
        path = serving.here.file(str(body.get("name")), str(body.get("file")))
        return web.FileResponse(path, headers=BINARY)

    app.router.add_get(MODELS_PATH, everything)
    app.router.add_get(f"{MODELS_PATH}/{{name}}", one)
    app.router.add_delete(f"{MODELS_PATH}/{{name}}", remove)
    app.router.add_post(f"{MODELS_PATH}/{{name}}/pin", pin)
    app.router.add_get(f"{MODELS_PATH}/{{name}}/files/{{file:.+}}", file)
    app.router.add_post(SERVED_PATH, take)
    for path in (LIST_PATH, REMOVE_PATH, PIN_PATH):
        app.router.add_post(path, peer)
    app.router.add_post(FILE_PATH, give)


def _json(body: BaseModel) -> web.Response:
    return web.json_response(body.model_dump(mode="json"))
