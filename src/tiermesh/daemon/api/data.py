"""`/api/data/{sha256}`: what jobs are to learn from, sent to the node that is asked, whole or in pieces.

    PUT                                        all of it; what breaks off leaves nothing
    PUT, Content-Range: bytes 0-8388607/N      a piece; what breaks off is kept for an hour, and gone on with
    GET, HEAD                                  is it here, and if not whole, how much of it is (`Upload-Offset`)

The names of the headers are those of the resumable uploads that the IETF's HTTP group drafts.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

from aiohttp import web

from tiermesh.adapters.blobs import EMPTY, Blobs
from tiermesh.errors import DataUnusable, InvalidInput, NotFound
from tiermesh.protocol.headers import UPLOAD_COMPLETE, UPLOAD_OFFSET
from tiermesh.protocol.jobs import DataReport

DATA_PATH = "/api/data/{sha256:[0-9a-f]{64}}"
SILENCE_S = 60.0
"""Between two parts of an upload: who is silent for longer is gone."""
_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")


def register_data(app: web.Application, blobs: Blobs) -> None:
    """Add the routes."""

    async def upload(request: web.Request) -> web.Response:
        sha256 = request.match_info["sha256"]
        if sha256 == EMPTY:
            raise DataUnusable("the data is empty", param="data")
        told = request.headers.get("Content-Range")
        if told is None:
            await blobs.put(sha256, _pieces(request), request.content_length)
        else:
            first, last, total = _range(told)
            if request.content_length not in (None, last - first + 1):
                raise InvalidInput(
                    f"Content-Range: {told} are {last - first + 1} bytes, but Content-Length says "
                    f"{request.content_length}",
                    param="Content-Range",
                )
            await blobs.put_part(sha256, _pieces(request), offset=first, total_bytes=total)
        return _told(blobs, sha256)

    async def look(request: web.Request) -> web.Response:
        return _told(blobs, request.match_info["sha256"])

    app.router.add_put(DATA_PATH, upload)
    app.router.add_get(DATA_PATH, look)


def _told(blobs: Blobs, sha256: str) -> web.Response:
    """Raises `NotFound` when nothing of it is here."""
    path = blobs.find(sha256)
    size = blobs.received(sha256) if path is None else path.stat().st_size
    coming = path is None and blobs.is_coming(sha256)
    if path is None and not size and not coming:
        raise NotFound("this node has no such data")
    report = DataReport(sha256=sha256, size_bytes=size, whole=path is not None, coming=coming)
    headers = {UPLOAD_OFFSET: str(size), UPLOAD_COMPLETE: "?1" if report.whole else "?0"}
    return web.json_response(report.model_dump(), headers=headers)


def _range(told: str) -> tuple[int, int, int]:
    """First and last byte, and all."""
    found = _RANGE.fullmatch(told.strip())
    first, last, total = map(int, found.groups()) if found else (0, 0, 0)
    if not first <= last < total:
        raise InvalidInput(
            f"Content-Range: must be like `bytes 0-8388607/20000000`, not {told[:60]!r}", param="Content-Range"
        )
    return first, last, total


async def _pieces(request: web.Request) -> AsyncIterator[bytes]:
    try:
        while piece := await asyncio.wait_for(request.content.readany(), SILENCE_S):
            yield piece
    except TimeoutError:
        raise InvalidInput(f"nothing of the data came for {SILENCE_S:g} s") from None
    except web.RequestPayloadError as error:
        raise InvalidInput(f"the body is not what its headers say: {' '.join(str(error).split())}") from None
