"""Data on its way to a node, in pieces: a connection that breaks costs one piece, and a node that restarts none."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Protocol

from tiermesh.client.data import Data
from tiermesh.errors import DeadlineExceeded, EngineFailed, NotFound, Unavailable, WrongOffset
from tiermesh.protocol.jobs import DataReport

PIECE_BYTES = 8 << 20
"""A second of a poor wireless link; what is smaller goes at once."""
PATIENCE_S = 60.0
"""Without a piece more at the node: it may restart meanwhile."""
AGAIN_S = 0.5
"""Between two tries."""
LOST = (Unavailable, EngineFailed, DeadlineExceeded)


@dataclass(frozen=True, slots=True)
class Piece:
    """`size_bytes` from `offset` on, of `total_bytes`."""

    offset: int
    size_bytes: int
    total_bytes: int

    @property
    def headers(self) -> dict[str, str]:
        """With its length, so that a node that has no room says so before it comes."""
        told = {"Content-Type": "application/octet-stream", "Content-Length": str(self.size_bytes)}
        if self.size_bytes == self.total_bytes:
            return told
        last = self.offset + self.size_bytes - 1
        return told | {"Content-Range": f"bytes {self.offset}-{last}/{self.total_bytes}"}


class DataDoor(Protocol):
    """What an upload needs of a client."""

    async def data_report(self, sha256: str) -> DataReport: ...
    async def put_data(self, sha256: str, data: Data, piece: Piece) -> DataReport: ...


async def upload(door: DataDoor, data: Data) -> str:
    """Send what the node does not have; gives the digest.

    Goes on after breaks, and waits while a piece comes to it on another connection. Raises the node's own refusals, and
    what broke when nothing more came to it for `PATIENCE_S`.
    """
    sha256, total = await data.sha256(), data.size_bytes
    there = await _there(door, sha256)
    moved_at = time.monotonic()
    while not there.whole:
        piece = Piece(there.size_bytes, min(PIECE_BYTES, total - there.size_bytes), total)
        try:
            if there.coming:
                raise Unavailable(f"{data.name} is being sent to the node on another connection, which is silent")
            if piece.size_bytes <= 0 < total:
                raise Unavailable(f"the node has all of {data.name}, and does not say that it is whole")
            now = await door.put_data(sha256, data, piece)
        except (*LOST, WrongOffset):
            if time.monotonic() > moved_at + PATIENCE_S:
                raise
            await asyncio.sleep(AGAIN_S)
            now = await _there_again(door, sha256, there)
        if now.whole or now.size_bytes > there.size_bytes:
            moved_at = time.monotonic()
        there = now
    return sha256


async def _there(door: DataDoor, sha256: str) -> DataReport:
    try:
        return await door.data_report(sha256)
    except NotFound:
        return DataReport(sha256=sha256, size_bytes=0, whole=False)


async def _there_again(door: DataDoor, sha256: str, before: DataReport) -> DataReport:
    """What came before the break; as much as was known while nobody answers."""
    try:
        return await _there(door, sha256)
    except LOST:
        return before
