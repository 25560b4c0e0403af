"""The learning rate of each step, which weights decay, and what is told of a step: figures against closed formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.training.workers import plan_run, write_texts
from tests import tiny_model
from tests.training.assembled import assembled
from tests.training.runs import Rows, Spoiled, run_of, spec_of, weights_of
from torch import nn

from tiermesh.kernel.training import models, plugins, telling
from tiermesh.kernel.training.gradients import Gradient
from tiermesh.kernel.training.memory import Usage
from tiermesh.kernel.training.optimizers import Groups, grouped
from tiermesh.kernel.training.progress import Progress
from tiermesh.kernel.training.schedules import Schedule, constant, cosine, linear
from tiermesh.protocol.training import Named
from tiermesh.protocol.training_events import Planned, StepDone

BUILT_IN: dict[str, Callable[..., Schedule]] = {"constant": constant, "linear": linear, "cosine": cosine}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_folder(tmp_path_factory.mktemp("tiny"))


class TestSchedules:
    """Of 24 steps after 4 of warm-up, so that step 14 is half way down."""

    @pytest.mark.parametrize("name", BUILT_IN)
    def test_the_warm_up_rises_evenly_to_the_full_rate(self, name: str) -> None:
        schedule = BUILT_IN[name](24, 4)
        assert [schedule(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])

    @pytest.mark.parametrize("name", BUILT_IN)
    def test_without_one_the_first_step_has_the_full_rate(self, name: str) -> None:
        assert BUILT_IN[name](24, 0)(0) == 1.0

    @pytest.mark.parametrize(
        ("name", "floor", "factors"),
        [
            ("constant", None, {5: 1.0, 14: 1.0, 23: 1.0, 24: 1.0}),
            ("linear", None, {5: 0.95, 9: 0.75, 14: 0.5, 19: 0.25, 23: 0.05, 24: 0.0, 30: 0.0}),
            ("linear", 0.2, {9: 0.8, 14: 0.6, 24: 0.2, 30: 0.2}),
            ("cosine", None, {9: 0.5 + math.sqrt(0.125), 14: 0.5, 19: 0.5 - math.sqrt(0.125), 24: 0.0, 30: 0.0}),
            ("cosine", 0.2, {9: 0.6 + 0.8 * math.sqrt(0.125), 14: 0.6, 24: 0.2, 30: 0.2}),
        ],
    )
    def test_the_decay_is_its_formula(self, name: str, floor: float | None, factors: dict[int, float]) -> None:
        options: dict[str, Any] = {} if floor is None else {"floor": floor}
        for schedule in (
            BUILT_IN[name](24, 4, **options),
            plugins.make_schedule(Named(name=name, options=options), 24, 4),
        ):
            assert {step: schedule(step) for step in factors} == pytest.approx(factors)

    @pytest.mark.parametrize("name", BUILT_IN)
    def test_a_run_that_is_all_warm_up_has_one_too(self, name: str) -> None:
        assert BUILT_IN[name](3, 3)(2) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("warmup", "steps", "expected"),
    [(0, 100, 0), (0.03, 100, 3), (0.03, 101, 4), (0.03, 10, 1), (0.5, 8, 4), (1, 10, 1), (25, 100, 25), (25, 10, 10)],
)
def test_the_warm_up_is_a_share_of_the_steps_or_their_number(warmup: float, steps: int, expected: int) -> None:
    assert spec_of(warmup=warmup).warmup_steps(steps) == expected


def test_each_step_of_a_run_learns_at_its_rate_whatever_group_a_weight_is_in(model: Path, tmp_path: Path) -> None:
    used: list[list[float]] = []

    class Noting(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            used.append([group["lr"] for group in self.param_groups])
            super().step(closure)

    spec = spec_of(method="full_finetune", learning_rate=0.01, max_grad_norm=None)
    trainee = models.load(spec, model)
    groups = grouped(trainee.trainables.values(), 0.0)
    run, events = run_of(
        tmp_path, model, spec, steps=6, trainee=trainee, optimizer=Noting(groups, lr=9.0), schedule=linear(6, 2)
    )
    assert run.go() == "done"
    rates = pytest.approx([0.01 / 3, 0.02 / 3, 0.01, 0.0075, 0.005, 0.0025])
    assert len(groups) == 2
    assert [first for first, _ in used] == rates
    assert [second for _, second in used] == rates
    assert [event.learning_rate for event in events if isinstance(event, StepDone)] == rates


class TestTheSpecsOwn:
    """What a spec says arrives in the run that is made of it."""

    def plan(self, tmp_path: Path, model: Path, **fields: Any) -> Any:
        data = write_texts(tmp_path / "data.jsonl", 30)
        sizes = {"seq_len": 64, "num_epochs": 100, "micro_batch_size": 2, "precision": "fp32", "save_interval": 1000}
        return plan_run(tmp_path / "run", model, data, **sizes | fields)

    def test_schedule_and_warm_up(self, tmp_path: Path, model: Path) -> None:
        schedule = {"scheduler": {"name": "linear", "options": {"floor": 0.5}}, "warmup": 0.4}
        with assembled(self.plan(tmp_path, model, max_steps=5, learning_rate=0.01, **schedule)) as (run, told):
            assert run.go() == "done"
        (planned,) = [event for event in told if isinstance(event, Planned)]
        assert planned.warmup_steps == 2
        rates = [event.learning_rate for event in told if isinstance(event, StepDone)]
        assert rates == pytest.approx([0.01 / 3, 0.02 / 3, 0.01, 0.01 * 5 / 6, 0.01 * 4 / 6])

    def test_weight_decay_of_matrices_alone(self, tmp_path: Path, model: Path) -> None:
        """Where the gradient is zero, the decay is all that AdamW does."""
        fields = {"method": "full_finetune", "weight_decay": 0.5, "learning_rate": 0.1, "max_steps": 1}
        with assembled(self.plan(tmp_path, model, **fields)) as (run, _):
            before, after = weights_of(run), run.trainee.trainables
            for weight in after.values():
                weight.grad = torch.zeros_like(weight)
            run.optimizer.step()
        assert {one.dim() for one in before.values()} == {1, 2}
        for name, one in before.items():
            kept = 1.0 - 0.1 * 0.5 if one.dim() == 2 else 1.0
            assert torch.allclose(after[name], kept * one), name


def test_matrices_decay_norms_and_biases_do_not() -> None:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    decayed, spared = grouped(net.parameters(), 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert ids(decayed) == [id(net[0].weight), id(net[1].weight)]
    assert ids(spared) == [id(net[1].bias), id(net[2].weight), id(net[2].bias)]


def test_there_is_no_group_of_nothing() -> None:
    """torch refuses one."""
    adapter = nn.Linear(4, 3, bias=False)
    assert [group["weight_decay"] for group in grouped(adapter.parameters(), 0.1)] == [0.1]


def ids(group: Groups | dict[str, Any]) -> list[int]:
    assert isinstance(group, dict)
    return [id(one) for one in group["params"]]


class TestTold:
    def test_what_is_told_of_a_step_follows_from_what_it_did(self) -> None:
        progress = Progress(step=30, position=120, tokens=9000, skipped_steps=2, rollbacks=1)
        gradient = Gradient(loss=math.log(8.0), norm=0.5, tokens=300, positions=400)
        told = telling.step_done(
            progress,
            gradient,
            steps=50,
            rows=80,
            rate=3e-4,
            seconds=1.5,
            usual_s=2.0,
            memory_bytes=1 << 30,
            gpu_use=0.5,
        )
        assert told.perplexity == pytest.approx(8.0)
        assert told.loss == pytest.approx(math.log(8.0))
        assert told.model_dump(exclude={"at", "event", "loss", "perplexity"}) == {
            "step": 30,
            "steps": 50,
            "epoch": 1.5,
            "learning_rate": 3e-4,
            "grad_norm": 0.5,
            "tokens": 9000,
            "tokens_per_s": 200.0,
            "utilisation": 0.75,
            "step_s": 1.5,
            "memory_bytes": 1 << 30,
            "gpu_use": 0.5,
            "eta_s": 40.0,
            "skipped_steps": 2,
            "rollbacks": 1,
        }

    def test_a_loss_without_an_exponential_has_no_perplexity(self) -> None:
        gradient = Gradient(loss=1000.0, norm=0.5, tokens=1, positions=1)
        told = telling.step_done(
            Progress(step=1),
            gradient,
            steps=2,
            rows=1,
            rate=1.0,
            seconds=1.0,
            usual_s=1.0,
            memory_bytes=0,
            gpu_use=None,
        )
        assert (told.loss, told.perplexity) == (1000.0, None)

    def test_each_interval_and_the_last_step_are_told(self, model: Path, tmp_path: Path) -> None:
        run, events = run_of(tmp_path, model, spec_of(log_interval=3), steps=8)
        assert run.go() == "done"
        told = [event for event in events if isinstance(event, StepDone)]
        assert [event.step for event in told] == [3, 6, 8]
        assert told[-1].loss == run.progress.loss
        assert [event.tokens for event in told] == [step * 4 * 20 for step in (3, 6, 8)]

    def test_a_run_tells_its_own_times_and_its_memory(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Micro-batches of 20 tokens in 80 places take 1 s each in the first step and 2 s each in the second; the time
        left goes by a mean that follows slowly."""
        clock = SimpleNamespace(now=100.0)
        monkeypatch.setattr("tiermesh.kernel.training.run.time", SimpleNamespace(monotonic=lambda: clock.now))

        def takes(call: int, loss: torch.Tensor) -> torch.Tensor:
            clock.now += 1.0 if call <= 2 else 2.0
            return loss

        class Sparse(Rows):
            def tokens(self, rows: Any) -> int:
                return super().tokens(rows) // 4

        run, events = run_of(
            tmp_path,
            model,
            spec_of(),
            steps=3,
            source=Sparse(),
            objective=Spoiled(takes),
            look=lambda: Usage(123 << 20, 100 << 30, 0.01),
        )
        assert run.go() == "done"
        told = [event for event in events if isinstance(event, StepDone)]
        assert [event.step_s for event in told] == [2.0, 4.0, 4.0]
        assert [event.tokens_per_s for event in told] == [10.0, 5.0, 5.0]
        assert [event.utilisation for event in told] == [0.25] * 3
        assert [event.eta_s for event in told] == pytest.approx([2.0 * 2, 0.9 * 2.0 + 0.1 * 4.0, 0.0])
        assert {event.memory_bytes for event in told} == {123 << 20}
        assert [event.perplexity for event in told] == pytest.approx([math.exp(event.loss or 0.0) for event in told])
        assert [event.epoch for event in told] == pytest.approx([4 / 24, 8 / 24, 12 / 24])
