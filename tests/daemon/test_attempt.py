"""How long one candidate is waited for."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
import uvloop

from tiermesh.daemon import attempt as attempt_module
from tiermesh.daemon.attempt import Attempt
from tiermesh.errors import DeadlineExceeded, EngineFailed
from tiermesh.types import NodeId


def made(*, deadline_s: float = 60.0, grace_s: float = 60.0, patience_s: float | None = None) -> Attempt:
    attempt = Attempt(NodeId("a"), deadline=asyncio.get_running_loop().time() + deadline_s, grace_s=grace_s)
    attempt.patience_s = patience_s
    return attempt


async def forever(attempt: Attempt) -> None:
    with attempt:
        await asyncio.Event().wait()


async def test_the_deadline_ends_it() -> None:
    with pytest.raises(DeadlineExceeded):
        await forever(made(deadline_s=0.01))


async def test_it_ends_too_what_never_makes_anybody_wait() -> None:
    attempt = made(deadline_s=0.02)

    def talk() -> None:
        while True:
            with attempt:
                pass

    with pytest.raises(DeadlineExceeded):
        talk()


async def test_silence_ends_it_when_it_is_given_up() -> None:
    asked: list[float] = []
    attempt = made(patience_s=0.02)

    def third(silent_s: float) -> bool:
        asked.append(silent_s)
        return len(asked) == 3

    attempt.gives_up = third
    with pytest.raises(EngineFailed, match="silent for"):
        await forever(attempt)
    assert len(asked) == 3
    assert all(later - earlier >= 0.019 for earlier, later in pairwise([0.0, *asked]))


async def test_a_node_that_goes_down_ends_it_at_once_before_it_spoke() -> None:
    attempt = made()
    waits = asyncio.create_task(forever(attempt))
    await asyncio.sleep(0)
    attempt.node_went_down()
    with pytest.raises(EngineFailed, match="went down"):
        await waits


async def test_and_after_a_grace_once_it_spoke() -> None:
    attempt = made(grace_s=0.05)
    attempt.begun = True
    attempt.node_went_down()
    began = asyncio.get_running_loop().time()
    with pytest.raises(EngineFailed, match="went down"):
        await forever(attempt)
    assert asyncio.get_running_loop().time() - began >= 0.04


@pytest.mark.parametrize(("on_its_way_s", "survives"), [(0.0, True), (60.0, False)])
async def test_only_what_was_said_after_the_news_speaks_for_a_node(
    on_its_way_s: float, survives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "ON_ITS_WAY_S", on_its_way_s)
    attempt = made(grace_s=0.02, deadline_s=0.2)
    attempt.begun = True
    attempt.node_went_down()
    with attempt:
        await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded if survives else EngineFailed):
        await forever(attempt)


async def test_thousands_of_waits_share_one_timer() -> None:
    attempt = made(patience_s=60)
    with attempt:
        await asyncio.sleep(0)
    timer = attempt._timer
    for _ in range(1000):
        with attempt:
            await asyncio.sleep(0)
    assert attempt._timer is timer
    attempt.close()


async def test_time_between_waits_is_nobodys_silence() -> None:
    attempt = made(patience_s=0.03)
    for _ in range(3):
        with attempt:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
    attempt.close()


async def test_who_is_cancelled_from_outside_is_cancelled() -> None:
    attempt = made(patience_s=60)
    waits = asyncio.create_task(forever(attempt))
    await asyncio.sleep(0)
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    attempt.close()


def test_a_deadline_that_has_passed_already_ends_it_on_uvloop_too() -> None:
    """Its handle of a timer that is due at once does not know when it is due."""

    async def work() -> None:
        attempt = made(deadline_s=0.0)
        for _ in range(2):
            with attempt:
                pass
        await forever(attempt)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, pytest.raises(DeadlineExceeded):
        runner.run(work())
