"""What an engine's answer is worth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tiermesh.adapters.engines import Reply
from tiermesh.daemon import replies
from tiermesh.errors import EngineFailed


@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_a_reason_that_does_not_come_is_not_waited_for(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "ERROR_S", 0.02)

    async def stalled() -> AsyncIterator[bytes]:
        yield b'{"error": '
        await asyncio.Event().wait()

    async with asyncio.timeout(5):
        with pytest.raises(EngineFailed, match=f"HTTP {status} and no reason"):
            await replies.read_verdict(Reply(status, "application/json", stalled()))
