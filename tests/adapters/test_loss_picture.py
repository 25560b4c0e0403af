"""The loss curve as a picture: drawn elsewhere, or its absence explained."""

from __future__ import annotations

import asyncio
import struct

import pytest

from tiermesh.adapters import loss_picture
from tiermesh.adapters.loss_picture import DPI, HEIGHT_IN, POINTS_LIMIT, WIDTH_IN, draw, obstacle
from tiermesh.errors import EnvironmentUnfit, TiermeshError

LOSSES = [(step, 4.0 / step) for step in range(1, 50)]


async def test_a_picture_is_drawn_in_another_process() -> None:
    pytest.importorskip("matplotlib")
    png = await draw("Job $x_1^2$ <ä 你好>", LOSSES, [(0, 5.0), (49, 0.2)])
    assert png.startswith(b"\x89PNG\r\n")
    assert struct.unpack(">II", png[16:24]) == (round(WIDTH_IN * DPI), round(HEIGHT_IN * DPI))


async def test_a_long_curve_is_drawn_too() -> None:
    pytest.importorskip("matplotlib")
    long = [(step, 1.0) for step in range(25 * POINTS_LIMIT)]
    assert (await draw("long", long, [])).startswith(b"\x89PNG")


async def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_picture, "find_spec", lambda _: None)
    assert obstacle() == loss_picture.ADVICE
    with pytest.raises(EnvironmentUnfit, match=r"tiermesh\[report\]"):
        await draw("none", LOSSES, [])


async def test_a_drawing_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_picture, "find_spec", lambda _: object())
    monkeypatch.setattr(loss_picture, "PROGRAM", ("-c", "raise SystemExit('no ink')"))
    with pytest.raises(TiermeshError, match="the picture can't be drawn: no ink"):
        await draw("none", LOSSES, [])


async def test_a_drawing_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_picture, "find_spec", lambda _: object())
    monkeypatch.setattr(loss_picture, "PROGRAM", ("-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(loss_picture, "DRAWN_S", 0.2)
    async with asyncio.timeout(10):
        with pytest.raises(TiermeshError, match="was not drawn within"):
            await draw("none", LOSSES, [])
