"""Work that nobody awaits."""

from __future__ import annotations

import asyncio

import pytest

from tiermesh.adapters.background import Background


async def test_a_failure_is_told_when_it_happens(caplog: pytest.LogCaptureFixture) -> None:
    failed = asyncio.Event()

    async def fail() -> None:
        failed.set()
        raise RuntimeError("out of luck")

    background = Background()
    background.start(fail())
    await failed.wait()
    await asyncio.sleep(0)
    assert "fail" in caplog.text
    assert "out of luck" in caplog.text
    await background.close()


async def test_close_ends_what_runs() -> None:
    ended = asyncio.Event()

    async def run() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    background = Background()
    background.start(run())
    await asyncio.sleep(0)
    await background.close()
    assert ended.is_set()
