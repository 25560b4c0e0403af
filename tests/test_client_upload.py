"""Data on its way in pieces: what breaks costs one piece, what the node refuses is told at once."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field

import pytest

from tiermesh.client import Data, upload
from tiermesh.client.upload import Piece
from tiermesh.client.upload import upload as send
from tiermesh.errors import BodyTooLarge, DataUnusable, EngineFailed, NotFound, TiermeshError, Unavailable, WrongOffset
from tiermesh.protocol.jobs import DataReport

CONTENT = b"0123456789abcdefghijklm"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Node:
    """What came to it. Each piece meets the next of `fates`: an error, after so many bytes were taken."""

    came: bytes = b""
    fates: list[tuple[int, TiermeshError] | None] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    away: int = 0
    """So many questions nobody answers."""

    async def data_report(self, sha256: str) -> DataReport:
        if self.away:
            self.away -= 1
            raise Unavailable("away")
        if not self.came:
            raise NotFound("nothing")
        return DataReport(sha256=sha256, size_bytes=len(self.came), whole=self.came == CONTENT)

    async def put_data(self, sha256: str, data: Data, piece: Piece) -> DataReport:
        self.pieces.append(piece)
        sent = b"".join([chunk async for chunk in data.chunks(piece.offset, piece.size_bytes)])
        fate = self.fates.pop(0) if self.fates else None
        if piece.offset != len(self.came):
            raise WrongOffset("elsewhere")
        self.came += sent if fate is None else sent[: fate[0]]
        if fate is not None:
            raise fate[1]
        return await self.data_report(sha256)


@pytest.fixture(autouse=True)
def _small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "PIECE_BYTES", 8)
    monkeypatch.setattr(upload, "AGAIN_S", 0.0)


async def to(node: Node) -> list[tuple[int, int]]:
    assert await asyncio.wait_for(send(node, Data(CONTENT, "a.txt")), 5) == DIGEST
    assert node.came == CONTENT
    return [(piece.offset, piece.size_bytes) for piece in node.pieces]


async def test_it_goes_in_pieces_and_not_twice() -> None:
    node = Node()
    assert await to(node) == [(0, 8), (8, 8), (16, 7)]
    assert await to(node) == [(0, 8), (8, 8), (16, 7)]


async def test_what_fits_in_one_piece_goes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "PIECE_BYTES", 23)
    node = Node()
    assert await to(node) == [(0, 23)]
    assert "Content-Range" not in node.pieces[0].headers
    assert Piece(8, 8, 23).headers["Content-Range"] == "bytes 8-15/23"


async def test_a_break_is_gone_on_after_where_it_was() -> None:
    node = Node(fates=[None, (3, EngineFailed("cut"))], away=0)
    assert await to(node) == [(0, 8), (8, 8), (11, 8), (19, 4)]


async def test_a_node_that_restarts_is_waited_for() -> None:
    class Restarting(Node):
        async def put_data(self, sha256: str, data: Data, piece: Piece) -> DataReport:
            if len(self.pieces) == 1:
                self.away = 3
            return await super().put_data(sha256, data, piece)

    node = Restarting(fates=[None, (8, EngineFailed("cut"))])
    assert (await to(node))[-1] == (16, 7)


async def test_who_is_overtaken_by_another_sender_goes_on_with_them() -> None:
    node = Node()

    class Overtaken(Node):
        async def data_report(self, sha256: str) -> DataReport:
            told = await Node.data_report(self, sha256)
            if len(self.came) == 8 and len(self.pieces) == 1:
                self.came = CONTENT[:12]
            return told

    node = Overtaken()
    assert await to(node) == [(0, 8), (8, 8), (12, 8), (20, 3)]


class Taken(Node):
    """Somebody else sends it; with each question 4 bytes more came, and after `turns` of them they leave."""

    turns = 3

    async def data_report(self, sha256: str) -> DataReport:
        if self.turns:
            self.turns -= 1
            self.came = CONTENT[: len(self.came) + 4]
        told = await super().data_report(sha256)
        return told.model_copy(update={"coming": self.turns > 0})


async def test_nothing_is_sent_while_another_connection_sends_it() -> None:
    assert await to(Taken()) == [(12, 8), (20, 3)]


async def test_an_upload_that_somebody_else_never_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "PATIENCE_S", 0.0)
    node = Taken()
    with pytest.raises(Unavailable, match="on another connection"):
        await send(node, Data(CONTENT, "a.txt"))
    assert node.pieces == []


@pytest.mark.parametrize("refusal", [BodyTooLarge("no room"), DataUnusable("changed")])
async def test_a_refusal_is_told_at_once(refusal: TiermeshError) -> None:
    node = Node(fates=[None, (0, refusal)])
    with pytest.raises(type(refusal)):
        await send(node, Data(CONTENT, "a.txt"))
    assert len(node.pieces) == 2


async def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "PATIENCE_S", 0.0)
    with pytest.raises(EngineFailed, match="cut"):
        await send(Node(fates=[(0, EngineFailed("cut"))]), Data(CONTENT, "a.txt"))


async def test_nobody_there_is_told_at_once() -> None:
    with pytest.raises(Unavailable, match="away"):
        await send(Node(away=1), Data(CONTENT, "a.txt"))
