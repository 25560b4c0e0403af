"""Streams are cut only where events end, and one that ends too early is never taken for a whole one."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator

import pytest

from tiermesh.daemon import sse
from tiermesh.daemon.sse import DONE, data_of, error_in, whole_events
from tiermesh.errors import EngineFailed

FIRST = 'data: {"choices": [{"delta": {"content": "ümläut 🦊"}, "finish_reason": null}]}\n\n'.encode()
LAST = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'
STREAM = FIRST + b": a comment\n\n" + LAST + DONE


class Source:
    """An upstream body; knows whether it was closed."""

    def __init__(self, *chunks: bytes, error: Exception | None = None) -> None:
        self.chunks, self.error, self.closed = chunks, error, False

    async def __call__(self) -> AsyncIterator[bytes]:
        try:
            for chunk in self.chunks:
                yield chunk
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


async def pieces(*chunks: bytes, choices: int = 1) -> list[bytes]:
    return [piece async for piece in whole_events(Source(*chunks)(), choices)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000])
async def test_whatever_the_chunks_pieces_end_where_events_end(size: int) -> None:
    found = await pieces(*(STREAM[i : i + size] for i in range(0, len(STREAM), size)))
    assert b"".join(found) == STREAM
    assert all(piece.endswith(b"\n\n") for piece in found)


async def test_carriage_returns_are_line_ends_too() -> None:
    stream = STREAM.replace(b"\n", b"\r\n")
    found = await pieces(*(stream[i : i + 5] for i in range(0, len(stream), 5)))
    assert b"".join(found) == stream
    assert [data[:1] for piece in found for data in data_of(piece)] == ["{", "{", "["]


async def test_nothing_is_read_after_done() -> None:
    source = Source(STREAM, b"data: more\n\n")
    assert b"".join([piece async for piece in whole_events(source())]) == STREAM
    assert source.closed


async def test_a_finished_stream_without_done_gets_one() -> None:
    assert b"".join(await pieces(FIRST, LAST)) == FIRST + LAST + DONE


@pytest.mark.parametrize(
    "chunks",
    [
        (),
        (FIRST,),
        (FIRST[:20],),
        (b'data: {"choices": [{"delta": {"content": "[DONE]"}}]}\n\n',),
        (b'data: {"choices": [{"delta": {"content": "\\"finish_reason\\": \\"stop\\""}}]}\n\n',),
        (b"<html>no such page</html>",),
    ],
)
async def test_a_stream_that_ends_before_the_answer_raises(chunks: tuple[bytes, ...]) -> None:
    with pytest.raises(EngineFailed, match="ended before"):
        await pieces(*chunks)


def ends(index: int) -> bytes:
    return b'data: {"choices": [{"index": %d, "delta": {}, "finish_reason": "stop"}]}\n\n' % index


async def test_of_several_answers_each_must_have_its_end() -> None:
    both = ends(1) + ends(0)
    assert b"".join(await pieces(FIRST, both, choices=2)) == FIRST + both + DONE
    for cut in (ends(0), ends(0) + ends(0)):
        with pytest.raises(EngineFailed, match="ended before"):
            await pieces(FIRST, cut, choices=2)


async def test_an_empty_reason_is_no_end() -> None:
    with pytest.raises(EngineFailed, match="ended before"):
        await pieces(b'data: {"choices": [{"delta": {"content": "x"}, "finish_reason": ""}]}\n\n')


async def test_an_endless_event_of_the_smallest_parts_takes_no_time() -> None:
    """Each part is looked at once: 4 MB by the byte would take hours otherwise."""
    parts = itertools.repeat(b"x", 300_000)
    started = time.process_time()
    assert b"".join(await pieces(b"data: ", *parts, b"\n\n", LAST)).endswith(LAST + DONE)
    assert time.process_time() - started < 5


async def test_an_endless_event_raises() -> None:
    chunk = b"x" * 100_000
    with pytest.raises(EngineFailed, match="an event of more than"):
        await pieces(*[chunk] * (sse.MAX_EVENT_BYTES // len(chunk) + 2))


async def test_what_was_whole_before_a_break_is_passed_on_and_the_source_is_closed() -> None:
    source = Source(FIRST, LAST[:10], error=EngineFailed("broke off"))
    stream = whole_events(source())
    assert await anext(stream) == FIRST
    with pytest.raises(EngineFailed, match="broke off"):
        await anext(stream)
    assert source.closed


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('{"error": {"message": "no memory"}}', "no memory"),
        ('{"error": "no memory"}', "no memory"),
        ('{"error": null, "choices": []}', None),
        ('{"choices": [{"delta": {"content": "\\"error\\""}}]}', None),
        ('["error"]', None),
        ("[DONE]", None),
    ],
)
def test_error_events_are_known_in_all_their_shapes(data: str, said: str | None) -> None:
    assert error_in(data) == said
