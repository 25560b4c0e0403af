"""What everybody can read of a job: how a failure was healed, what its data is, its report as a page and a picture.
With a real daemon and a scripted worker."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.training_desk import LONG, SPEC, STEP, TEXT, Desk, opened, play_scripts
from tests.training_fake import starts

from tiermesh.adapters import loss_picture
from tiermesh.core.remediation import MAX_RETRIES

pytest.importorskip("torch")

POLICY = "{grace_s: 10, evaluation: {max_final_loss: 2.0, max_gap: any, canary: false}}"
COMPLETED = {"event": "completed", "step": 9, "result": "result", "loss": 1.25, "first_loss": 4.0, "train_loss": 1.5}
GOOD: list[dict[str, Any]] = [{"say": STEP | {"loss": 1.25}}, {"say": COMPLETED}]
PLANNED = {"event": "planned", "steps": 9, "effective_batch": 8, "micro_batch_size": 8}
DATA = {"event": "data", "records": 2, "tokens": 40, "rows": 1, "length_p50": 18, "length_p95": 22, "length_max": 23}
CHAT = {"messages": [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "two"}]}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
async def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    play_scripts(tmp_path, monkeypatch, POLICY)
    async with opened(tmp_path, f"test-{secrets.token_hex(4)}") as made:
        yield made


def failing(kind: str, message: str) -> list[dict[str, Any]]:
    """A worker that says for what reason it ends."""
    return [
        {"say": PLANNED},
        {"say": STEP},
        {"say": {"event": "failed", "kind": kind, "message": message}},
        {"exit": 3},
    ]


def trained(desk: Desk, job: dict[str, Any], attempt: int) -> dict[str, Any]:
    """The spec that the worker of this attempt was given, but for where its data lies."""
    assert len(starts(desk.run(job["id"], attempt))) == 1
    spec = json.loads((desk.run(job["id"], attempt) / "spec.json").read_text())["spec"]
    return {name: value for name, value in spec.items() if name != "dataset_path"}


async def healed(desk: Desk, failure: list[dict[str, Any]], spec: dict[str, Any]) -> dict[str, Any]:
    """A job that fails once and then ends well, when it is over."""
    job = await desk.train(failure, spec=SPEC | spec, attempts={2: GOOD}, name="faq")
    return await desk.until(job["id"], "completed", "failed")


class TestHealing:
    async def test_refused_memory_heals_by_half_the_batch(self, desk: Desk) -> None:
        spec = {"micro_batch_size": 8, "gradient_accumulation_steps": 2}
        job = await healed(desk, failing("out_of_memory", "no room for 8 rows"), spec)
        assert (job["state"], job["attempt"], job["retries"]) == ("completed", 2, 1), job["reason"]
        first, second = trained(desk, job, 1), trained(desk, job, 2)
        sizes = [(one["micro_batch_size"], one["gradient_accumulation_steps"]) for one in (first, second)]
        assert sizes == [(8, 2), (4, 4)], "the effective batch holds"
        assert second == first | {"micro_batch_size": 4, "gradient_accumulation_steps": 4}, "and all else"

        told = [(tried["state"], tried["failure"], tried["cause"]) for tried in job["attempts"]]
        assert told == [("failed", "out_of_memory", "first"), ("completed", None, "retried")]
        assert job["attempts"][0]["reason"] == "no room for 8 rows"
        why = "out of memory: a micro-batch of 4 instead of 8"
        assert why in job["attempts"][1]["why"]
        (retry,) = [one["text"] for one in job["happened"] if one["kind"] == "retry"]
        assert retry == f"no room for 8 rows; {why}"
        page = await desk.page("faq")
        assert "| out_of_memory: no room for 8 rows |" in page
        assert why in page

    async def test_a_run_that_came_down_by_itself_begins_the_next_attempt_below_that(self, desk: Desk) -> None:
        relieved = {
            "event": "relieved",
            "step": 7,
            "level": "refused",
            "action": "halve_micro_batch",
            "micro_batch_size": 2,
        }
        planned, *rest = failing("out_of_memory", "no room for 2 rows")
        job = await healed(desk, [planned, {"say": relieved}, *rest], {"micro_batch_size": 8})
        assert job["state"] == "completed", job["reason"]
        second = trained(desk, job, 2)
        assert (second["micro_batch_size"], second["gradient_accumulation_steps"]) == (1, 8)

    async def test_numbers_that_are_none_heal_by_half_the_rate(self, desk: Desk) -> None:
        job = await healed(desk, failing("non_finite", "9 steps in a row had NaN"), {"learning_rate": 1e-3})
        assert (job["state"], job["retries"]) == ("completed", 1), job["reason"]
        assert trained(desk, job, 2) == trained(desk, job, 1) | {"learning_rate": 5e-4}
        assert [tried["failure"] for tried in job["attempts"]] == ["non_finite", None]
        page = await desk.page("faq")
        assert "non_finite: 9 steps in a row had NaN" in page
        assert "learning rate 0.0005 instead of 0.001" in page

    async def test_what_heals_by_nothing_ends_with_its_cause(self, desk: Desk) -> None:
        failure = failing("non_finite", "9 steps in a row had NaN")
        numbers = range(2, MAX_RETRIES + 3)
        job = await desk.train(failure, spec=SPEC | {"learning_rate": 1e-3}, attempts=dict.fromkeys(numbers, failure))
        failed = await desk.until(job["id"], "completed", "failed")
        assert (failed["state"], failed["failure"], len(failed["attempts"])) == (
            "failed",
            "non_finite",
            MAX_RETRIES + 1,
        )
        assert failed["reason"] == "9 steps in a row had NaN; 3 retries were made, and no more than 3 are"


class TestReport:
    async def test_a_job_that_is_done_has_a_page_and_a_picture(self, desk: Desk) -> None:
        pytest.importorskip("matplotlib")
        job = await desk.train([{"say": DATA}, *GOOD], name="faq")
        await desk.until(job["id"], "completed")
        page = await desk.page("faq")
        assert page.startswith("# Job faq\n")
        assert "- **Status**: completed: done after 9 steps" in page
        assert "- **Final loss**: 1.25" in page
        assert "## Gate\n\napprove" in page
        assert "## Evaluation\n\nEvery gate was passed." in page
        assert "## Loss\n\n![loss by step](report.png)" in page
        assert "2 records, 40 tokens in 1 rows, lengths 18 (half), 22 (95 %), 23 (longest)" in page
        assert await desk.page(job["id"]) != "", "by its id too"
        async with desk.http.get(f"{desk.url}/api/jobs/faq/report.png") as response:
            assert (response.status, response.content_type) == (200, "image/png")
            assert (await response.read()).startswith(PNG)

    async def test_where_nothing_draws_the_page_has_a_table_and_says_why(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loss_picture, "obstacle", lambda: loss_picture.ADVICE)
        job = await desk.train(GOOD, name="faq")
        await desk.until(job["id"], "completed")
        page = await desk.page("faq")
        assert "There is no picture: matplotlib is not installed on this node" in page
        assert "| 7 | 1.25 |  |" in page
        _, told = await desk.ask("GET", "/api/jobs/faq/report.png")
        assert (told["error"]["type"], told["error"]["message"]) == ("environment_unfit", loss_picture.ADVICE)

    async def test_one_whose_result_is_not_good_enough_says_so(self, desk: Desk) -> None:
        bad = [{"say": STEP}, {"say": COMPLETED | {"train_loss": 3.0}}]
        job = await desk.train(bad, name="faq", spec=SPEC | {"max_steps": 9})
        assert (await desk.until(job["id"], "completed", "failed"))["failure"] == "loss_too_high"
        said = "the final training loss is 3.000, and at most 2 is asked for"
        assert f"## Evaluation\n\n- failed: attempt 1: {said}" in await desk.page("faq")

    async def test_one_that_made_no_step_yet_says_that_there_is_no_curve(self, desk: Desk) -> None:
        job = await desk.train([{"say": PLANNED}, *LONG[1:]], name="faq")
        await desk.until(job["id"], "running")
        assert "## Loss\n\nNo step was made." in await desk.page("faq")
        status, told = await desk.ask("GET", "/api/jobs/faq/report.png")
        assert (status, told["error"]["type"]) == (404, "not_found")
        assert told["error"]["message"] == "job faq made no step yet, so there is no curve to be drawn"
        assert (await desk.ask("GET", "/api/jobs/nobody/report"))[0] == 404


class TestData:
    """What the node that takes a job sees of its data is in the job's record, for everybody."""

    async def seen(self, desk: Desk, **fields: Any) -> list[str]:
        job = await desk.train(GOOD, **fields)
        return [one["text"] for one in job["happened"] if one["kind"] == "data"]

    async def test_its_format_its_records_and_those_that_are_left_out(self, desk: Desk) -> None:
        lines = [CHAT, CHAT, {}, CHAT, {"text": 3}, CHAT]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        fields: dict[str, Any] = {"data": {"name": "faq.jsonl", "text": text}, "name": "faq"}
        said = "faq.jsonl, 4 records of chat (JSONL); left out: 2 (lines 3, 5)"
        assert await self.seen(desk, **fields) == [said]
        told = await desk.until("faq", "completed")
        assert [one["kind"] for one in told["happened"]][:2] == ["submit", "data"]
        assert said in await desk.page("faq")
        assert await self.seen(desk, **fields) == [said], "another job with this data, which is not read again"

    async def test_many_are_counted_and_the_first_ones_named(self, desk: Desk) -> None:
        text = TEXT + f"{json.dumps(CHAT)}\n" + "no json\n" * 9
        assert await self.seen(desk, data={"name": "faq.jsonl", "text": text}) == [
            "faq.jsonl, 3 records of completion and chat (JSONL); left out: 9 (lines 4, 5, 6, 7, 8, …)"
        ]

    async def test_what_is_held_out_is_told_too(self, desk: Desk) -> None:
        held_out = {"name": "exam.csv", "text": "prompt,completion\none?,two\n"}
        assert await self.seen(desk, eval_data=held_out) == [
            "faq.jsonl, 2 records of completion (JSONL); held out: exam.csv, 1 record of completion (CSV)"
        ]

    async def test_a_node_that_can_not_look_says_nothing(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tiermesh.adapters.run_plan.LIBRARIES", ("no_such_library",))
        assert await self.seen(desk) == []
