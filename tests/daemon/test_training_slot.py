"""A node's training slot by itself: what stops before it began, and what a node says of it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tiermesh.core.attempts import Told
from tiermesh.core.codec import decode_value, encode_value
from tiermesh.daemon import attempts
from tiermesh.daemon.attempts import Attempts
from tiermesh.daemon.told import key_of, next_told
from tiermesh.errors import JobRefused, SlotTaken, TiermeshError
from tiermesh.protocol.cluster import BallotReport
from tiermesh.protocol.job_orders import AttemptOrder, DataAsked
from tiermesh.protocol.run_folder import RunPlan
from tiermesh.protocol.ulid import make_ulid
from tiermesh.types import NO_BALLOT, NodeId

LIMIT_S = 10.0
DATA = DataAsked(sha256="0" * 64, name="faq.jsonl")


class Disk:
    """Writes when it may."""

    def __init__(self) -> None:
        self.may_write, self.writing = asyncio.Event(), asyncio.Event()
        self.may_write.set()

    async def attempts(self) -> list[dict[str, Any]]:
        return []

    async def save_attempt(self, *_: object) -> None:
        self.writing.set()
        await self.may_write.wait()


class Needs:
    """What a run needs comes when it may, or not at all."""

    def __init__(self) -> None:
        self.may_come, self.asked = asyncio.Event(), asyncio.Event()
        self.may_come.set()
        self.refusal: TiermeshError | None = None

    async def bring(self, *_: object) -> None:
        self.asked.set()
        await self.may_come.wait()
        if self.refusal is not None:
            raise self.refusal

    def admit(self, *_: object) -> RunPlan:
        return cast(RunPlan, SimpleNamespace(spec=SimpleNamespace(memory_limit=None)))


class Slot:
    """One node's, whose workers can't be started."""

    def __init__(self, folder: Path) -> None:
        self.disk, self.needs = Disk(), Needs()
        self.attempts = Attempts(
            me=NodeId("a" * 32),
            folder=folder,
            store=cast(Any, self.disk),
            copies=cast(Any, self.needs),
            groundwork=cast(Any, self.needs),
            promised=lambda: NO_BALLOT,
            supervise=lambda: lambda _: None,
            on_news=lambda: None,
            on_training=lambda _: None,
        )

    def told(self) -> Told:
        (said,) = self.attempts.to_tell(NO_BALLOT)
        return cast(Told, decode_value(Told, said.told))


@asynccontextmanager
async def slot(folder: Path) -> AsyncIterator[Slot]:
    async with asyncio.timeout(LIMIT_S):
        made = Slot(folder)
        await made.attempts.open()
        yield made
        await made.attempts.close()


def order() -> AttemptOrder:
    ballot = BallotReport(term=1, node_id="a" * 32)
    job = make_ulid(secrets.randbits(40), secrets.token_bytes(10))
    return AttemptOrder(job=job, spec={}, data=DATA, ballot=ballot, attempt=1)


def never(*_: object) -> None:
    raise AssertionError("no worker may be started")


async def test_a_stop_while_its_beginning_is_written_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "Trainer", never)
    async with slot(tmp_path) as here:
        here.disk.may_write.clear()
        asked = order()
        taking = asyncio.create_task(here.attempts.take(asked))
        await here.disk.writing.wait()
        here.attempts.stop(key_of(asked.key), "cancelled")
        here.disk.may_write.set()
        await taking
        await here.attempts.idle()
        assert (here.told().state, here.told().reason) == ("stopped", "cancelled")


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_stop_does_not_wait_for_what_the_run_would_have_needed(tmp_path: Path, *, at_once: bool) -> None:
    async with slot(tmp_path) as here:
        here.needs.may_come.clear()
        taking = asyncio.create_task(here.attempts.take(order()))
        await asyncio.sleep(0)
        assert here.attempts.training
        if not at_once:
            await here.needs.asked.wait()
        here.attempts.rest(True)
        await here.attempts.idle()
        await taking
        assert (here.told().state, here.told().phase) == ("stopped", "prepare")


async def test_a_refusal_that_took_its_time_is_the_nodes_and_not_the_jobs_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "ANSWER_S", 0.01)
    async with slot(tmp_path) as here:
        here.needs.may_come.clear()
        here.needs.refusal = JobRefused("there is no room for it here")
        assert (await here.attempts.take(order())).state == "running"
        here.needs.may_come.set()
        await here.attempts.idle()
        assert (here.told().state, here.told().phase) == ("stopped", "prepare")


async def test_a_node_that_ends_takes_nothing_more(tmp_path: Path) -> None:
    async with slot(tmp_path) as here:
        await here.attempts.close()
        with pytest.raises(SlotTaken):
            await here.attempts.take(order())


async def test_an_end_is_told_after_the_disk_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "ANSWER_S", 0.01)
    async with slot(tmp_path) as here:
        here.needs.may_come.clear()
        await here.attempts.take(order())
        here.disk.may_write.clear()
        here.attempts.rest(True)
        await here.disk.writing.wait()
        assert here.told().state == "running"
        here.disk.may_write.set()
        await here.attempts.idle()
        assert here.told().state == "stopped"


def test_a_reason_of_any_length_can_be_told() -> None:
    told = next_told(Told(seq=1), state="failed", reason="it crashed: " + "x" * 20_000)
    assert decode_value(Told, encode_value(told)) == told
