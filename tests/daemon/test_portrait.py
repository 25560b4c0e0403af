"""A node's own status: drawn from its engines, told when it changed, and not too often."""

from __future__ import annotations

import asyncio

import pytest

from tiermesh.daemon.portrait import Portrait, total_load
from tiermesh.types import EngineInfo, Load, Model, Status, Tier

FIRST = Status("me", ())
NO_LOAD = Load()


class StillEngine:
    """The facts of an engine, as `Portrait` reads them; it answers nothing."""

    def __init__(self, name: str, load: Load = NO_LOAD) -> None:
        self.info = EngineInfo(name, "openai", "ready")
        self.models = (Model(f"{name}-model", "sha256:0", 1, name, "warm"),)
        self.load = load


async def test_many_changes_are_told_once() -> None:
    told: list[Status] = []
    engines = [StillEngine("a")]
    portrait = Portrait(FIRST, told.append, tier=1)
    portrait.watch(lambda: engines)  # type: ignore[arg-type, return-value]
    assert [s.models[0].name for s in told] == ["a-model"]
    engines.append(StillEngine("b", Load(1, 4, 2)))
    for _ in range(100):
        portrait.redraw()
    async with asyncio.timeout(5):
        while len(told) < 2:
            await asyncio.sleep(0.01)
    assert told[-1].load == Load(1, 4, 2)
    assert [e.name for e in told[-1].engines] == ["a", "b"]
    assert portrait.status is told[-1]


async def test_what_did_not_change_is_not_told() -> None:
    told: list[Status] = []
    portrait = Portrait(FIRST, told.append, tier=1)
    portrait.watch(tuple)
    portrait.change(state="up")
    portrait.change(state="draining")
    assert [s.state for s in told] == ["draining"]


@pytest.mark.parametrize(("declared", "as_door"), [(None, None), (2, 2)])
async def test_a_door_has_no_tier_unless_one_was_declared(declared: Tier | None, as_door: Tier | None) -> None:
    told: list[Status] = []
    engines: list[StillEngine] = []
    portrait = Portrait(Status("me", (), tier=declared), told.append, tier=declared or 1)
    portrait.watch(lambda: engines)  # type: ignore[arg-type, return-value]
    assert portrait.status.tier == as_door
    engines.append(StillEngine("a"))
    portrait.watch(lambda: engines)  # type: ignore[arg-type, return-value]
    assert portrait.status.tier == (declared or 1)


async def test_after_close_nothing_is_told() -> None:
    told: list[Status] = []
    portrait = Portrait(FIRST, told.append, tier=1)
    portrait.redraw()
    portrait.close()
    portrait.redraw()
    assert told == []


def test_loads_add_up() -> None:
    assert total_load([Load(1, 2, 3), Load(10, 20, 30)]) == Load(11, 22, 33)
