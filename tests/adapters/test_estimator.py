"""What a job would take: tried once for each shape, one at a time, and reckoned for whatever data comes with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests import estimate_fake

from tiermesh.adapters import estimator, trials
from tiermesh.adapters.estimator import Estimator
from tiermesh.adapters.trainer import Launch
from tiermesh.adapters.trials import FREE, Amount, shape_key
from tiermesh.core.admission import GIB, Machine
from tiermesh.core.price import Declared
from tiermesh.errors import BadData, DataUnusable, InvalidSpec, JobRefused, TooLarge
from tiermesh.protocol.run_folder import RunPlan
from tiermesh.protocol.training import TrainingSpec
from tiermesh.types import Gpu, Hardware, NodeId

NODE = NodeId("a" * 32)
FOUND = {
    "total_bytes": 2 * GIB,
    "limit_bytes": 8 * GIB,
    "micro_batch_size": 4,
    "checkpointing": False,
    "fits": True,
    "steps": 25,
    "step_s": 2.0,
    "loading_s": 10.0,
    "evaluation_s": 4.0,
    "saving_s": 1.0,
    "seconds": 65.0,
    "seconds_low": 52.0,
    "seconds_high": 78.0,
}


def plan_of(*, digest: str = "1", canary: bool = False, **fields: Any) -> RunPlan:
    spec = TrainingSpec.model_validate({"model_name": "tiny", "dataset_path": "d.jsonl", "num_epochs": 1, **fields})
    return RunPlan(
        spec=spec, model_path="/tiny", model_digest="m", data_path=f"/{digest}", data_digest=digest, canary=canary
    )


class Stage:
    """An estimator on a scripted trial, and the world around it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.script = folder / "script"
        self.script.mkdir()
        self.machine = Machine(16 * GIB, 8 * GIB)
        self.hardware = Hardware(cpu_model="a processor")
        self.declared = Declared()
        self.busy = False
        self.rows: Mapping[str, int] = {}
        self.fill = 0.9
        self.looks: list[str] = []
        monkeypatch.setenv(estimate_fake.VARIABLE, str(self.script))
        monkeypatch.setattr(estimator, "Launch", partial(Launch, program=estimate_fake.PROGRAM))
        monkeypatch.setattr(estimator, "inspect_data", self._look)
        self.answer()
        self.estimator = self.made()

    def made(self) -> Estimator:
        """One that knows nothing but what is on the disk."""
        return Estimator(
            folder=self.folder / "estimates",
            node=NODE,
            declared=self.declared,
            hardware=lambda: self.hardware,
            memory=lambda: self.machine,
            is_busy=lambda: self.busy,
            supervise=lambda: lambda _: None,
        )

    def answer(self, rows: int | None = 100, failed: Mapping[str, Any] | None = None, **found: Any) -> None:
        told = {"failed": failed} if failed else {"rows": rows, "estimate": FOUND | found}
        (self.script / "answer.json").write_text(json.dumps(told))

    @property
    def trials(self) -> list[RunPlan]:
        path = self.script / "started"
        return [RunPlan.model_validate_json(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _look(self, file: Path, *, tokenizer: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
        self.looks.append(file.name)
        return {"rows": self.rows.get(file.name, 105), "fill": self.fill}


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path, monkeypatch)
    yield stage
    await stage.estimator.close()


async def test_a_trial_tells_memory_time_and_steps(stage: Stage) -> None:
    found = await stage.estimator.estimate(plan_of())
    assert (found.node, found.device, found.steps, found.effective_batch) == (NODE, "a processor", 25, 4)
    assert found.memory_bytes_low < found.memory_bytes == 2 * GIB < found.memory_bytes_high
    assert found.seconds == 10.0 + 25 * 2.0 + 4.0 + 1.0
    assert (found.seconds_low, found.seconds_high) == pytest.approx((52.0, 78.0))
    assert (found.usd, found.usd_low, found.usd_high, found.usd_per_second) == (None, None, None, None)
    assert found.basis == "tried on this node just now; its price is unknown"


async def test_two_hundred_equal_jobs_cost_one_trial(stage: Stage) -> None:
    first = await stage.estimator.estimate(plan_of())
    found = await asyncio.gather(*(stage.estimator.estimate(plan_of()) for _ in range(199)))
    assert len(stage.trials) == len(stage.looks) == 1
    assert {each.seconds for each in found} == {first.seconds}
    assert "an equal run was tried on this node" in found[0].basis


async def test_so_do_those_that_come_at_once(stage: Stage) -> None:
    await asyncio.gather(*(stage.estimator.estimate(plan_of()) for _ in range(200)))
    assert len(stage.trials) == len(stage.looks) == 1


async def test_what_was_tried_is_known_after_a_restart(stage: Stage) -> None:
    await stage.estimator.estimate(plan_of())
    await stage.made().estimate(plan_of())
    assert len(stage.trials) == len(stage.looks) == 1


AMOUNT = Amount(at=0.0, rows=100, exact=True, row_tokens=400.0)


@pytest.mark.parametrize(
    "fields",
    [{"num_epochs": 9}, {"max_steps": 3}, {"learning_rate": 1e-3}, {"dataset_path": "other"}, {"target_gpu": "tier:1"}],
    ids=str,
)
def test_what_changes_no_step_is_the_same_shape(fields: dict[str, Any]) -> None:
    assert shape_key(plan_of(**fields), AMOUNT) == shape_key(plan_of(), AMOUNT)


@pytest.mark.parametrize(
    "fields",
    [
        *({"method": "full_finetune"}, {"micro_batch_size": 2}, {"gradient_accumulation_steps": 2}, {"seq_len": 64}),
        *({"precision": "fp32"}, {"lora": {"r": 8}}, {"optimizer": "sgd"}, {"checkpointing": True}, {"packing": False}),
        *({"samples": ["hello"]}, {"eval_interval": 5}, {"memory_limit": "4 GB"}, {"canary": True}),
    ],
    ids=str,
)
def test_another_shape_is_another(fields: dict[str, Any]) -> None:
    assert shape_key(plan_of(**fields), AMOUNT) != shape_key(plan_of(), AMOUNT)


def test_every_field_of_a_spec_is_free_or_shape() -> None:
    assert set(TrainingSpec.model_fields) > FREE


@pytest.mark.parametrize(("row_tokens", "same"), [(400.0, True), (430.0, True), (480.0, False), (40.0, False)])
def test_rows_are_as_full_within_a_fifth(row_tokens: float, same: bool) -> None:
    other = replace(AMOUNT, row_tokens=row_tokens)
    assert (shape_key(plan_of(), other) == shape_key(plan_of(), AMOUNT)) == same


async def test_other_data_is_looked_at_and_its_steps_are_counted(stage: Stage) -> None:
    await stage.estimator.estimate(plan_of())
    stage.rows = {"2": 1000}
    found = await stage.estimator.estimate(plan_of(digest="2", eval_fraction=0.05))
    assert (len(stage.trials), stage.looks) == (2, ["1", "2"])
    stage.rows = {"3": 2000}
    found = await stage.estimator.estimate(plan_of(digest="3", eval_fraction=0.05))
    assert (len(stage.trials), stage.looks) == (2, ["1", "2", "3"])
    assert found.steps == 2000 * 0.95 / 4
    # It was saved once in 25 steps, and is in every hundred and at the end: five times.
    assert found.seconds == 10.0 + 475 * 2.0 + 4.0 + 5 * 1.0


async def test_one_trial_at_a_time(stage: Stage) -> None:
    await asyncio.gather(*(stage.estimator.estimate(plan_of(seq_len=length)) for length in (64, 128, 256)))
    assert (stage.script / "turns").read_text().split() == ["begins", "ends"] * 3
    for length in (64, 128, 256):
        await stage.estimator.estimate(plan_of(seq_len=length))
    assert len(stage.trials) == 3, "one trial takes nothing from another"


async def test_who_stops_waiting_stops_no_trial(stage: Stage) -> None:
    (stage.script / "hold").touch()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stage.estimator.estimate(plan_of()), 1.0)
    (stage.script / "hold").unlink()
    await stage.estimator.estimate(plan_of())
    assert len(stage.trials) == 1


async def test_closed_it_ends_what_is_being_tried(stage: Stage) -> None:
    (stage.script / "hold").touch()
    waiting = asyncio.create_task(stage.estimator.estimate(plan_of()))
    async with asyncio.timeout(20):
        while not stage.trials:
            await asyncio.sleep(0.01)
    await stage.estimator.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


PRICES = [
    ("declared", Declared(usd_per_second=0.01), (), 0.01, "its price is declared"),
    ("free", Declared(usd_per_second=0.0), (), 0.0, "its price is declared"),
    ("energy", Declared(watts=3600.0, usd_per_kwh=0.5), (), 0.0005, "its price is that of its power"),
    ("rented", Declared(), (Gpu("Tesla T4"),), 0.000126, "its price is that of a rented device"),
]


@pytest.mark.parametrize(("declared", "gpus", "each", "basis"), [row[1:] for row in PRICES], ids=[r[0] for r in PRICES])
async def test_it_is_priced(stage: Stage, declared: Declared, gpus: tuple[Gpu, ...], each: float, basis: str) -> None:
    stage.declared, stage.hardware = declared, Hardware(cpu_model="a processor", gpus=gpus)
    found = await stage.made().estimate(plan_of())
    assert found.usd_per_second == pytest.approx(each)
    assert (found.usd_low, found.usd, found.usd_high) == pytest.approx((52.0 * each, 65.0 * each, 78.0 * each))
    assert found.device == (gpus[0].name if gpus else "a processor")
    assert basis in found.basis


async def test_what_does_not_fit_is_refused_until_more_is_free(stage: Stage) -> None:
    smaller: dict[str, Any] = {
        "fits": False,
        "micro_batch_size": 1,
        "checkpointing": True,
        "step_s": None,
        "seconds": None,
    }
    stage.answer(rows=None, total_bytes=12 * GIB, **smaller)
    stage.machine = Machine(16 * GIB, 8 * GIB)
    for _ in range(2):
        with pytest.raises(JobRefused, match=r"needs about 12.0 GiB with 1 row at once, and 8.0 GiB were free"):
            await stage.estimator.estimate(plan_of())
    assert len(stage.trials) == 1
    stage.answer(limit_bytes=15 * GIB)
    stage.machine = Machine(16 * GIB, 15 * GIB)
    assert (await stage.estimator.estimate(plan_of())).memory_bytes == 2 * GIB
    assert len(stage.trials) == 2


TOO_LARGE: dict[str, Any] = {
    "fits": False,
    "micro_batch_size": 1,
    "step_s": None,
    "seconds": None,
    "total_bytes": 12 * GIB,
}


async def test_what_the_whole_machine_does_not_hold_is_told_by_how_much(stage: Stage) -> None:
    stage.answer(rows=None, **TOO_LARGE)
    stage.machine = Machine(10 * GIB, 8 * GIB)
    with pytest.raises(TooLarge, match=r"needs about 12.0 GiB .*, and this node has 10.0 GiB") as raised:
        await stage.estimator.estimate(plan_of())
    assert (raised.value.needs_bytes, raised.value.has_bytes) == (12 * GIB, 10 * GIB)


async def test_more_than_the_spec_allows_is_a_bad_spec(stage: Stage) -> None:
    stage.answer(rows=None, **TOO_LARGE, limit_bytes=GIB)
    with pytest.raises(InvalidSpec, match=r"needs about 12.0 GiB .*, and memory_limit is 1.0 GiB") as raised:
        await stage.estimator.estimate(plan_of(memory_limit=GIB))
    assert raised.value.param == "memory_limit"


async def test_what_had_to_be_smaller_is_tried_again_with_more_memory(stage: Stage) -> None:
    stage.answer(micro_batch_size=1)
    assert "with 1 row at once" in (await stage.estimator.estimate(plan_of())).basis
    stage.answer(limit_bytes=15 * GIB)
    stage.machine = Machine(16 * GIB, 15 * GIB)
    assert "at once" not in (await stage.estimator.estimate(plan_of())).basis


async def test_what_was_tried_while_it_trained_is_an_upper_end(stage: Stage) -> None:
    stage.busy = True
    found = await stage.estimator.estimate(plan_of())
    assert (found.seconds_low, found.seconds_high) == pytest.approx((26.0, 78.0))
    assert "while it trained something else" in found.basis
    await stage.estimator.estimate(plan_of())
    assert len(stage.trials) == 1
    stage.busy = False
    assert "while" not in (await stage.estimator.estimate(plan_of())).basis
    assert len(stage.trials) == 2


FAILURES: list[tuple[str, type[Exception]]] = [
    ("bad_data", DataUnusable),
    ("bad_spec", InvalidSpec),
    ("out_of_memory", JobRefused),
]


@pytest.mark.parametrize(("kind", "error"), FAILURES)
async def test_a_trial_that_fails_says_why(stage: Stage, kind: str, error: type[Exception]) -> None:
    stage.answer(failed={"kind": kind, "message": "so and so"})
    with pytest.raises(error, match="so and so"):
        await stage.estimator.estimate(plan_of())
    stage.answer()
    assert (await stage.estimator.estimate(plan_of())).steps == 25  # A failure is not kept.


async def test_data_that_can_not_be_used_is_no_trial(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*_: object, **__: object) -> dict[str, Any]:
        raise BadData("it has no records")

    monkeypatch.setattr(estimator, "inspect_data", look)
    with pytest.raises(DataUnusable, match="it has no records"):
        await stage.estimator.estimate(plan_of())
    assert stage.trials == []


async def test_a_damaged_cache_is_none(stage: Stage) -> None:
    await stage.estimator.estimate(plan_of())
    for file in (stage.folder / "estimates").rglob("*.json"):
        file.write_text(file.read_text()[:20])
    assert (await stage.estimator.estimate(plan_of())).steps == 25
    assert len(stage.trials) == 2


async def test_the_cache_is_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "KEPT", 3)
    for number in range(5):
        await stage.estimator.estimate(plan_of(digest=str(number)))
    assert len(list((stage.folder / "estimates" / "kept" / "amount").iterdir())) == 3
