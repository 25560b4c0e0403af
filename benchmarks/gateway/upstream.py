"""A model server that costs next to nothing: `python -m benchmarks.gateway.upstream PORT [--event-gap-ms N]`.

Answers are those of `exchange`; the events of a stream leave one by one, each in a write of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import cast

import uvloop

from benchmarks.gateway.exchange import MODEL, answer, asked, events_of
from benchmarks.gateway.wire import length_of

MODELS = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bench"}]}).encode()
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Upstream(asyncio.Protocol):
    """One connection."""

    def __init__(self, event_gap_s: float) -> None:
        self._event_gap_s = event_gap_s
        self._left = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._left += data
        end = self._left.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._left[:end]
        whole = end + 4 + length_of(head)
        if len(self._left) < whole:
            return
        body, self._left = self._left[end + 4 : whole], self._left[whole:]
        self._answer(head.split(b" ", 2)[1], body)

    def _answer(self, path: bytes, body: bytes) -> None:
        if path == b"/v1/models":
            self._send(b"200 OK", MODELS)
        elif path != b"/v1/chat/completions":
            self._send(b"404 Not Found", b'{"error": "nothing here"}')
        else:
            number, events = asked(body)
            if events is None:
                self._send(b"200 OK", answer(number))
            else:
                self._transport.write(STREAM_HEAD)
                self._stream(events_of(number, events), 0, asyncio.get_running_loop().time())

    def _send(self, status: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        self._transport.write(head + body)

    def _stream(self, events: list[bytes], index: int, began: float) -> None:
        """Send event `index` and those that are due; a late one is not waited for twice."""
        loop = asyncio.get_running_loop()
        while index < len(events):
            self._transport.write(b"%x\r\n%b\r\n" % (len(events[index]), events[index]))
            index += 1
            due = began + index * self._event_gap_s
            if due > loop.time() and index < len(events):
                self._timer = loop.call_at(due, self._stream, events, index, began)
                return
        self._transport.write(b"0\r\n\r\n")


async def serve(port: int, event_gap_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Upstream(event_gap_s), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--event-gap-ms", type=float, default=5.0)
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.event_gap_ms / 1000))


if __name__ == "__main__":
    main()
