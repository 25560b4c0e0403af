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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PRICED = """
price: {usd_per_second: 0.001}
budget: {soft_usd: 0, max_usd: 50}
evaluation: {max_final_loss: any, max_gap: any, canary: false}
"""
"""A tenth of a cent a second: whatever it takes, it is over nothing and under fifty dollars."""
JUDGED = """
jobs: {max_retries: 1}
evaluation: {max_final_loss: 0.01, max_gap: any, canary: true}
"""
"""No tiny model comes there in a minute."""
SHORT: Mapping[str, Any] = SPEC | {"num_epochs": 1, "max_steps": 6}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_folder(tmp_path_factory.mktemp("model") / "tiny")


async def _until(job: TrainingJob, *states: str) -> JobReport:
    async with asyncio.timeout(LIMIT_S):
        while (report := await job.refresh()).state not in states:
            assert not report.is_over, report
            await asyncio.sleep(0.05)
    return report


async def test_a_person_is_asked_and_may_approve_or_have_it_made_cheaper(tmp_path: Path, model: Path) -> None:
    async with machine(tmp_path, model, config=PRICED) as (_, client), asyncio.timeout(3 * LIMIT_S):
        first = await client.train(SHORT, data(), name="asked")
        waiting = await _until(first, "waiting")
        estimate = waiting.estimate
        assert estimate is not None
        assert (estimate.node, estimate.steps, estimate.usd_per_second) == ("desk", 6, 0.001)
        assert estimate.usd_low is not None
        assert estimate.usd is not None
        assert estimate.usd_high is not None
        assert 0 < estimate.usd_low < estimate.usd < estimate.usd_high < 50
        assert "its price is declared" in estimate.basis
        assert "a person approves" in waiting.reason

        cheaper = await client.train(SHORT, data(), name="cheaper")
        await _until(cheaper, "waiting")
        await cheaper.optimize()
        halved = await _until(cheaper, "waiting")
        assert halved.spec["max_steps"] == 3
        assert halved.estimate is not None
        assert halved.estimate.steps == 3
        assert halved.estimate.usd_high is not None
        assert halved.estimate.usd_high < estimate.usd_high
        assert (await cheaper.cancel()).state == "cancelled"

        dear = await client.train(SHORT, data(), name="dear", max_usd=0.0)
        refused = await dear.wait()
        assert (refused.state, refused.failure) == ("refused", "over_budget")
        assert "its submitter pays $0.00 at most" in refused.reason

        await first.approve()
        assert (await first.wait()).state == "completed"
        agreed = await client.train(SHORT, data(), name="agreed", approve=True)
        assert (await agreed.wait()).state == "completed"


async def test_a_result_that_is_not_good_enough_is_tried_again_and_then_fails(tmp_path: Path, model: Path) -> None:
    async with machine(tmp_path, model, config=JUDGED) as (desk, client), asyncio.timeout(3 * LIMIT_S):
        bad = await client.train(SHORT, data(), name="bad")
        report = await bad.wait()
        assert (report.state, report.failure) == ("failed", "loss_too_high"), desk.log()
        assert "at most 0.01 is asked for" in report.reason
        assert [(tried.number, tried.cause) for tried in report.attempts] == [(1, "first"), (2, "retried")]
        assert [len(desk.losses(bad, number)) for number in (1, 2)] == [6, 12]

        good = await client.train(SHORT, data(), name="good", gates={"max_final_loss": "any"})
        report = await good.wait()
        assert (report.state, report.attempt) == ("completed", 1), report.reason
        assert report.result["train_loss"] < report.result["first_loss"]
        canary = report.result["canary"]
        assert len(canary) == 4
        assert all(one["before"] and one["after"] for one in canary)
