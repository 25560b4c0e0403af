"""A job at the gate, and its result at the gates, in a real daemon: priced, asked about, made cheaper, judged."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.training_daemon import LIMIT_S, SPEC, data, machine

from tiermesh.client import TrainingJob
from tiermesh.protocol.jobs import JobReport

pytest.importorskip("torch")
from tests import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CONFIG = """
price: {usd_per_second: 0.001}
budget: {soft_usd: 0, max_usd: 50}
jobs: {max_retries: 1}
evaluation: {max_final_loss: 0.01, max_gap: any, canary: true}
"""
"""A tenth of a cent a second: whatever it takes, it is over nothing and under fifty dollars. And no tiny model comes to
such a loss in a minute."""
SHORT: Mapping[str, Any] = SPEC | {"num_epochs": 1, "max_steps": 6}
ANY_LOSS = {"max_final_loss": "any"}


async def _until_it_waits(job: TrainingJob) -> JobReport:
    async with asyncio.timeout(LIMIT_S):
        while (report := await job.refresh()).state != "waiting":
            assert not report.is_over, report
            await asyncio.sleep(0.05)
    return report


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_folder(tmp_path_factory.mktemp("model") / "tiny")


async def test_a_job_is_priced_asked_about_made_cheaper_and_judged(tmp_path: Path, model: Path) -> None:
    async with machine(tmp_path, model, config=CONFIG) as (_, client), asyncio.timeout(3 * LIMIT_S):
        asked = await client.train(SHORT, data(), name="asked", gates=ANY_LOSS)
        waiting = await _until_it_waits(asked)
        estimate = waiting.estimate
        assert estimate is not None
        assert (estimate.node, estimate.steps, estimate.usd_per_second) == ("desk", 6, 0.001)
        prices = (estimate.usd_low, estimate.usd, estimate.usd_high)
        assert None not in prices
        assert 0 < (prices[0] or 0) < (prices[1] or 0) < (prices[2] or 0) < 50
        assert "its price is declared" in estimate.basis
        assert "a person approves" in waiting.reason

        cheaper = await client.train(SHORT, data(), name="cheaper", gates=ANY_LOSS)
        await _until_it_waits(cheaper)
        await cheaper.optimize()
        halved = await _until_it_waits(cheaper)
        assert halved.spec["max_steps"] == 3
        assert halved.estimate is not None
        assert (halved.estimate.usd_high or 0) < (prices[2] or 0)
        assert (await cheaper.cancel()).state == "cancelled"

        dear = await (await client.train(SHORT, data(), name="dear", max_usd=0.0)).wait()
        assert (dear.state, dear.failure) == ("refused", "over_budget")
        assert "its submitter pays $0.00 at most" in dear.reason

        await asked.approve()
        good = await asked.wait()
        assert (good.state, good.attempt) == ("completed", 1), good.reason
        assert good.result["train_loss"] < good.result["first_loss"]
        canary = good.result["canary"]
        assert len(canary) == 4
        assert all(one["before"] and one["after"] for one in canary)


@pytest.mark.long
async def test_a_result_that_is_not_good_enough_is_tried_again_and_then_fails(tmp_path: Path, model: Path) -> None:
    async with machine(tmp_path, model, config=CONFIG) as (desk, client), asyncio.timeout(3 * LIMIT_S):
        bounded = await (await client.train(SHORT, data(), name="bounded", approve=True)).wait()
        assert (bounded.state, bounded.failure, len(bounded.attempts)) == ("failed", "loss_too_high", 1), desk.log()
        assert "max_steps (6) allows no more" in bounded.reason

        judged = await client.train({**SHORT, "max_steps": None}, data(), name="judged", approve=True)
        bad = await judged.wait()
        assert (bad.state, bad.failure) == ("failed", "loss_too_high"), desk.log()
        assert "at most 0.01 is asked for" in bad.reason
        assert [(tried.number, tried.cause) for tried in bad.attempts] == [(1, "first"), (2, "retried")]
        first, second = (len(desk.losses(judged, number)) for number in (1, 2))
        assert second == 2 * first
        assert bad.demands == "a final training loss of at most 0.01, 4 fixed prompts answered as before"
