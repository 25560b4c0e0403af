"""Real failures and what follows from them: real workers, failed by the operating system's memory or by their numbers,
are tried again with what `core.remediation` says, until they end well."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from benchmarks.training.workers import write_texts
from tests.tiny_model import build_folder

from tiermesh.adapters.trainer import WORKER, Launch, Trainer
from tiermesh.core.evaluation import Gates, failed, judge
from tiermesh.core.remediation import Remedy, Stop, remedy
from tiermesh.protocol.run_folder import RunFolder, RunPlan
from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_events import Completed, Failed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts data as its limit does"),
]

WITHOUT_RELIEF = (
    sys.executable,
    "-c",
    "import tiermesh.kernel.training.relieving as relieving\n"
    "relieving.next_action = relieving.tightened = lambda *_, **__: None\n"
    "from tiermesh.kernel.training.__main__ import main\n"
    "main()",
)
"""The worker without the ladder that it has itself, so that the one across attempts is what heals."""

FIELDS: Mapping[str, Any] = {
    "seq_len": 512,
    "max_steps": 2,
    "num_epochs": 100,
    "precision": "fp32",
    "learning_rate": 1e-3,
    "lora": {"dropout": 0.0},
    "guard": {"spike_z": None},
}
ANY = Gates(max_final_loss=None, max_gap=None, canary=False)


@dataclass
class Life:
    """A job as the coordinator leads it, on one machine."""

    folder: Path
    model: Path
    data: Path
    gates: Gates = ANY
    program: tuple[str, ...] = WORKER
    tried: list[Mapping[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    completed: Completed | None = None

    async def lead(self, spec: Mapping[str, Any]) -> None:
        """To its end, good or not."""
        next_spec: Mapping[str, Any] | None = spec
        while next_spec is not None:
            failure, reached = await self._attempt(next_spec)
            self.tried.append(next_spec)
            if failure is None:
                return
            self.failures.append(failure)
            match remedy(failure, self.tried, reached=reached):
                case Remedy(changed, why):
                    next_spec = changed
                    self.why.append(why)
                case Stop(why):
                    next_spec = None
                    self.why.append(why)

    async def _attempt(self, fields: Mapping[str, Any]) -> tuple[str | None, int | None]:
        spec = TrainingSpec.model_validate(
            {"model_name": "tiny", "dataset_path": str(self.data), "eval_fraction": 0.0, **fields}
        )
        plan = RunPlan(spec=spec, model_path=str(self.model), data_path=str(self.data), canary=self.gates.canary)
        run = RunFolder(self.folder / f"attempt-{len(self.tried) + 1}")
        launch = Launch(folder=run, plan=plan, threads=1, memory_limit_bytes=spec.memory_limit, program=self.program)
        ending = await asyncio.wait_for(Trainer(launch, lambda _: None).run(), 300)
        match ending.last:
            case Completed() as last:
                self.completed = last
                checks = failed(judge(last.model_dump(), self.gates))
                return (checks[0].failure, None) if checks else (None, None)
            case Failed() as last:
                return last.kind, ending.micro_batch_size
        assert ending.how == "out_of_memory", (ending, run.log.read_text()[-2000:])
        return "out_of_memory", ending.micro_batch_size


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("data") / "data.jsonl", 2000)


async def test_refused_memory_heals_by_half_the_batch(tmp_path: Path, model: Path, data: Path) -> None:
    """The operating system refuses what 128 rows need (about 1.1 GiB); 64 (0.7 GiB) find room."""
    life = Life(tmp_path, model, data, program=WITHOUT_RELIEF)
    await life.lead({**FIELDS, "micro_batch_size": 128, "memory_limit": 925 << 20})
    assert life.failures == ["out_of_memory"]
    assert life.completed is not None, life.why
    sizes = [(spec["micro_batch_size"], spec.get("gradient_accumulation_steps", 1)) for spec in life.tried]
    assert sizes == [(128, 1), (64, 2)]
    assert life.completed.step == FIELDS["max_steps"]


async def test_a_record_that_spoils_a_step_costs_that_step_alone(tmp_path: Path, model: Path) -> None:
    """Its weight leaves the range of the numbers that are computed with: the loss of its step is none."""
    rows = [{"text": f"what comes after {n} is {n + 1}, said the quick brown fox", "weight": 1.0} for n in range(32)]
    rows[13]["weight"] = 1e300
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    life = Life(tmp_path, model, data)
    await life.lead(
        {
            **FIELDS,
            "seq_len": 32,
            "packing": False,
            "micro_batch_size": 4,
            "max_steps": None,
            "num_epochs": 1,
            "data": {"fields": {"weight": "weight"}},
        }
    )
    assert life.completed is not None, (life.failures, life.why)
    assert len(life.tried) == 1
    assert (life.completed.step, life.completed.skipped_steps) == (8, 1)
    assert life.completed.loss is not None


@pytest.mark.long
async def test_numbers_that_overflow_heal_by_half_the_rate(tmp_path: Path, model: Path, data: Path) -> None:
    """Plain gradient descent with a step as long as this one leaves the range of numbers."""
    life = Life(tmp_path, model, data, gates=Gates(max_final_loss=9.0, max_gap=None, canary=True))
    await life.lead(
        {
            **FIELDS,
            "micro_batch_size": 8,
            "max_steps": 16,
            "seq_len": 64,
            "method": "full_finetune",
            "optimizer": "sgd",
            "max_grad_norm": None,
            "warmup": 0,
            "scheduler": "constant",
            "learning_rate": 4.0,
            "guard": {"spike_z": None, "max_bad_steps": 1, "max_rollbacks": 1},
        }
    )
    assert life.completed is not None, (life.failures, life.why)
    assert life.failures[0] in ("non_finite", "diverged")
    assert set(life.failures) <= {"non_finite", "diverged", "loss_rose"}
    assert life.completed.train_loss is not None
    assert life.completed.first_loss is not None
    assert life.completed.train_loss < life.completed.first_loss
    rates = [spec["learning_rate"] for spec in life.tried]
    assert rates == [4.0 / 2**retry for retry in range(len(rates))]
    assert {spec["method"] for spec in life.tried} == {"full_finetune"}
