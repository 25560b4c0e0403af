"""The loop: what it learns, and what it never lets through to the weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests import tiny_model
from tests.training.runs import Rows, Spoiled, digest_of, run_of, spec_of, weights_of

from tiermesh.core.relief import Taken
from tiermesh.errors import Diverged, NonFinite, OutOfMemory
from tiermesh.kernel.training import evaluation, models
from tiermesh.kernel.training.checkpoints import Checkpoints
from tiermesh.kernel.training.data.batches import MicroBatch
from tiermesh.kernel.training.failures import translate
from tiermesh.kernel.training.loss import TokenLoss
from tiermesh.kernel.training.memory import Usage
from tiermesh.kernel.training.models import Trainee
from tiermesh.kernel.training.optimizers import Groups, grouped, open_state
from tiermesh.kernel.training.progress import Progress
from tiermesh.kernel.training.run import Run
from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_events import (
    CheckpointSaved,
    Evaluated,
    Phase,
    Relieved,
    RolledBack,
    Sampled,
    StepDone,
    StepSkipped,
    TrainingEvent,
)

NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_folder(tmp_path_factory.mktemp("tiny"))


def test_the_loss_falls(model: Path, tmp_path: Path) -> None:
    run, events = run_of(tmp_path, model, spec_of(learning_rate=1e-2), steps=40, held_out=Rows(6))
    assert run.go() == "done"
    losses = [event.loss or math.nan for event in events if isinstance(event, StepDone)]
    assert len(losses) == 40
    assert losses[-1] < 0.5 * losses[0]
    before, after = (event.loss or math.nan for event in events if isinstance(event, Evaluated))
    assert after < before
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [40]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("micro", [1, 3, 4])
def test_the_micro_batch_changes_no_result(model: Path, tmp_path: Path, micro: int, weighted: bool) -> None:
    """Rows have different numbers of targets, so a mean of means would differ."""
    whole, _ = run_of(
        tmp_path / "a",
        model,
        spec_of(micro_batch_size=12, gradient_accumulation_steps=1),
        steps=5,
        source=Rows(weighted=weighted),
    )
    parts, _ = run_of(
        tmp_path / "b",
        model,
        spec_of(micro_batch_size=micro, gradient_accumulation_steps=12 // micro),
        steps=5,
        source=Rows(weighted=weighted),
    )
    whole.go()
    parts.go()
    assert parts.progress.loss == pytest.approx(whole.progress.loss, abs=1e-4)


class TestBadSteps:
    def spoiled(self, value: float, at: int) -> Spoiled:
        return Spoiled(lambda call, loss: loss * value if call == at else loss)

    @pytest.mark.parametrize("value", [NAN, INF, -INF])
    def test_a_bad_loss_changes_no_weight_and_no_optimizer_state(
        self, model: Path, tmp_path: Path, value: float
    ) -> None:
        run, events = run_of(tmp_path, model, spec_of(), steps=9, objective=self.spoiled(value, at=8))
        digests = digests_by_step(run)
        run.go()
        assert digests[4] == digests[3]
        assert len(set(digests.values())) == 8
        assert [(e.step, e.where) for e in events if isinstance(e, StepSkipped)] == [(4, "loss")]
        assert run.progress.skipped_steps == 1

    @pytest.mark.parametrize("value", [NAN, INF])
    def test_a_bad_gradient_changes_nothing_either(self, model: Path, tmp_path: Path, value: float) -> None:
        run, events = run_of(tmp_path, model, spec_of(), steps=6)
        digests = digests_by_step(run)
        parameter = list(run.trainee.trainables.values())[-1]
        calls = []

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            gradient = gradient.clone()
            gradient.view(-1)[3] = value if len(calls) == 6 else gradient.view(-1)[3]
            return gradient

        parameter.register_hook(spoil)  # type: ignore[no-untyped-call]
        run.go()
        assert digests[3] == digests[2]
        assert len(set(digests.values())) == 5
        assert [(e.step, e.where) for e in events if isinstance(e, StepSkipped)] == [(3, "gradients")]

    def test_bad_examples_are_passed_over_one_by_one(self, model: Path, tmp_path: Path) -> None:
        """What an example holds may be bad itself: here a weight of infinity."""
        source = Rows(weighted=True)
        assert source.weights_RT is not None
        source.weights_RT[5, -2] = INF
        run, _ = run_of(tmp_path, model, spec_of(num_epochs=1), steps=6, source=source)
        run.go()
        assert run.progress.skipped_steps == 1
        assert all(bool(torch.isfinite(one).all()) for one in run.trainee.trainables.values())

    def test_a_spoiled_weight_is_put_back(self, model: Path, tmp_path: Path) -> None:
        run, events = run_of(tmp_path, model, spec_of(), steps=30)
        weight = next(iter(run.trainee.trainables.values()))

        def spoil(event: object) -> None:
            if isinstance(event, StepDone) and event.step == 20 and run.progress.rollbacks == 0:
                with torch.no_grad():
                    weight.view(-1)[0] = NAN

        listen(run, spoil)
        assert run.go() == "done"
        assert [(e.step, e.where) for e in events if isinstance(e, StepSkipped)] == [(21, "weights")]
        assert [e.to_step for e in events if isinstance(e, RolledBack)] == [16]
        assert all(bool(torch.isfinite(one).all()) for one in run.trainee.trainables.values())

    def test_too_many_in_a_row_fail_by_name(self, model: Path, tmp_path: Path) -> None:
        spec = spec_of(guard={"max_bad_steps": 3})
        run, events = run_of(tmp_path, model, spec, steps=50, objective=Spoiled(lambda call, loss: loss * NAN))
        open_state(run.optimizer)
        before = digest_of(run)
        with pytest.raises(NonFinite, match="4 steps in a row"):
            run.go()
        assert digest_of(run) == before
        assert [e.in_a_row for e in events if isinstance(e, StepSkipped)] == [1, 2, 3, 4]

    def test_a_run_that_learned_nothing_is_not_done(self, model: Path, tmp_path: Path) -> None:
        run, _ = run_of(tmp_path, model, spec_of(), steps=4, objective=Spoiled(lambda call, loss: loss * NAN))
        with pytest.raises(NonFinite, match="none of the 4 steps"):
            run.go()


class TestSpikes:
    def test_weights_that_went_wrong_are_put_back_and_the_examples_passed_over(
        self, model: Path, tmp_path: Path
    ) -> None:
        """From step 25 on the losses of the weights as they are then are high; those before are not."""
        spec = spec_of(learning_rate=5e-3)
        run, events = run_of(tmp_path, model, spec, steps=40)
        ruin_at(run, 25)
        assert run.go() == "done"
        suspect = [event.step for event in events if isinstance(event, StepSkipped)]
        back = [event for event in events if isinstance(event, RolledBack)]
        assert suspect == [26]
        assert [(event.step, event.to_step) for event in back] == [(27, 16)]
        assert (back[0].first_position, back[0].last_position) == (25 * 4, 27 * 4 - 1)
        assert (run.progress.loss or math.nan) < 6

    def test_one_outlier_is_passed_over_without_going_back(self, model: Path, tmp_path: Path) -> None:
        objective = Spoiled(lambda call, loss: loss * 9 if call in (59, 60) else loss)
        run, events = run_of(tmp_path, model, spec_of(), steps=40, objective=objective)
        digests = digests_by_step(run)
        run.go()
        assert digests[30] == digests[29]
        assert [(e.step, e.where) for e in events if isinstance(e, StepSkipped)] == [(30, "spike")]
        assert not [e for e in events if isinstance(e, RolledBack)]

    def test_too_many_returns_fail_by_name(self, model: Path, tmp_path: Path) -> None:
        """Steps from 30 on are bad whatever the weights are, twice as bad each time."""
        objective = Spoiled(lambda call, loss: loss * 4.0 ** (call // 2 - 29) if call >= 60 else loss)
        run, events = run_of(tmp_path, model, spec_of(guard={"max_rollbacks": 2}), steps=60, objective=objective)
        with pytest.raises(Diverged, match="after 2 returns"):
            run.go()
        assert len([e for e in events if isinstance(e, RolledBack)]) == 2

    @pytest.mark.parametrize(("interval", "keep_last", "good"), [(12, 2, 12), (8, 2, 16), (5, 2, 20), (1, 1, 23)])
    def test_a_state_too_large_for_a_copy_is_read_from_disk(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: int, keep_last: int, good: int
    ) -> None:
        """The newest that two ordinary steps followed; saved was also at 24, at 25 when it was ruined, and at 26."""
        monkeypatch.setattr("tiermesh.kernel.training.guard.IN_MEMORY_BYTES", 0)
        kept = Checkpoints(tmp_path / "checkpoints", keep_last=keep_last, keep_best=0)
        run, events = run_of(tmp_path, model, spec_of(save_interval=interval, learning_rate=5e-3), steps=40)
        run.checkpoints = run.keeping.checkpoints = kept
        ruin_at(run, 25)
        assert run.go() == "done"
        assert [event.to_step for event in events if isinstance(event, RolledBack)] == [good]
        assert (run.progress.loss or math.nan) < 6

    @pytest.mark.parametrize("where", ["copies in memory", "disk"])
    @pytest.mark.parametrize("killed_at", [25, 26])
    def test_a_run_killed_with_a_ruined_checkpoint_finds_the_good_one(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int, where: str
    ) -> None:
        """It goes on from the newest, notices, and goes back to the one before."""
        if where == "disk":
            monkeypatch.setattr("tiermesh.kernel.training.guard.IN_MEMORY_BYTES", 0)
        spec = spec_of(save_interval=1, learning_rate=5e-3)
        killed, _ = run_of(tmp_path, model, spec, steps=40)
        killed.checkpoints.keep_last = 1
        ruin_at(killed, 25)

        def kill(event: object) -> None:
            if isinstance(event, CheckpointSaved) and event.step == killed_at:
                raise Killed

        listen(killed, kill)
        with pytest.raises(Killed):
            killed.go()

        again, events = run_of(tmp_path, model, spec, steps=40)
        snapshot = again.checkpoints.newest()
        assert snapshot is not None
        assert snapshot.step == killed_at
        again.take_up(snapshot)
        assert again.go() == "done"
        (back,) = [event for event in events if isinstance(event, RolledBack)]
        assert (back.step, back.to_step, back.first_position) == (27, 23, 25 * 4)
        assert (again.progress.loss or math.nan) < 6

    def test_weights_that_are_no_numbers_and_were_saved_are_not_returned_to(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tiermesh.kernel.training.guard.IN_MEMORY_BYTES", 0)
        run, events = run_of(tmp_path, model, spec_of(save_interval=5), steps=30)
        ruin_at(run, 20, NAN)
        assert run.go() == "done"
        assert [event.to_step for event in events if isinstance(event, RolledBack)] == [15]

    @pytest.mark.parametrize(("saved", "good"), [((4,), 4), ((3, 4), 3)])
    def test_where_no_checkpoint_is_proven_it_is_the_one_before_the_newest(
        self, model: Path, tmp_path: Path, saved: tuple[int, ...], good: int
    ) -> None:
        """As after an earlier version's, which did not note it."""
        run, _ = run_of(tmp_path, model, spec_of(), steps=30)
        for step in saved:
            run.progress.step = step
            run.keeping.save(run.progress)
        found = run.keeping.good()
        assert found is not None
        assert found.step == good


class TestMemory:
    """Torch says on a CPU that memory was refused in a plain RuntimeError."""

    REFUSED = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1099511627776 bytes."

    def refusing(self, batches_over: int) -> Spoiled:
        class Small(Spoiled):
            def summed(self, trainee: Trainee, batch: MicroBatch) -> torch.Tensor:
                loss = super().summed(trainee, batch)
                if len(batch.tokens_BT) > batches_over:
                    raise RuntimeError(TestMemory.REFUSED)
                return loss

        return Small(lambda call, loss: loss)

    def test_a_refused_step_is_done_again_smaller_with_the_same_result(self, model: Path, tmp_path: Path) -> None:
        spec = spec_of(micro_batch_size=8, gradient_accumulation_steps=1)
        plain, _ = run_of(tmp_path / "a", model, spec, steps=10)
        tight, events = run_of(tmp_path / "b", model, spec, steps=10, objective=self.refusing(2))
        plain.go()
        tight.go()
        assert [event.micro_batch_size for event in events if isinstance(event, Relieved)] == [4, 2]
        assert tight.progress.loss == pytest.approx(plain.progress.loss, abs=1e-4)
        assert tight.progress.step == 10
        assert tight.progress.position == plain.progress.position

    def test_an_evaluation_that_is_refused_is_done_again_smaller(self, model: Path, tmp_path: Path) -> None:
        spec = spec_of(micro_batch_size=8, gradient_accumulation_steps=1)
        run, events = run_of(tmp_path, model, spec, steps=2, held_out=Rows(8), objective=self.refusing(2))
        assert run.go() == "done"
        relieved = [event for event in events if isinstance(event, Relieved)]
        assert [(event.step, event.micro_batch_size) for event in relieved] == [(0, 4), (0, 2)]
        assert len([event for event in events if isinstance(event, Evaluated)]) == 2

    def test_an_answer_that_is_refused_is_given_again_when_there_is_room(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Once before anything is told, and once when a part of the samples was."""
        spec = spec_of(micro_batch_size=8, gradient_accumulation_steps=1, samples=["one", "two"], sample_tokens=3)
        run, events = run_of(tmp_path, model, spec, steps=1)
        generate, calls = run.trainee.model.generate, itertools.count(1)

        def refused(**asked: object) -> object:
            if next(calls) in (1, 3):
                raise RuntimeError(self.REFUSED)
            return generate(**asked)

        monkeypatch.setattr(run.trainee.model, "generate", refused)
        assert run.go() == "done"
        assert [event.micro_batch_size for event in events if isinstance(event, Relieved)] == [4, 2]
        told = [(event.step, event.prompt) for event in events if isinstance(event, Sampled)]
        assert told == [(0, "one"), (0, "two"), (1, "one"), (1, "two")]

    def test_all_held_out_rows_are_looked_at_with_fewer_at_once(self, model: Path) -> None:
        trainee, rows = models.load(spec_of(), model), Rows(8)
        found = evaluation.whole_held_out(trainee, self.refusing(2), rows, 8)
        wanted = evaluation.held_out(trainee, TokenLoss(), rows, 8)
        assert found is not None
        assert wanted is not None
        assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
        with pytest.raises(RuntimeError) as caught:
            evaluation.whole_held_out(trainee, self.refusing(0), rows, 8)
        assert isinstance(translate(caught.value), OutOfMemory)

    def test_when_nothing_is_left_it_fails_by_name(self, model: Path, tmp_path: Path) -> None:
        run, events = run_of(tmp_path, model, spec_of(micro_batch_size=8), steps=10, objective=self.refusing(0))
        open_state(run.optimizer)
        before = digest_of(run)
        with pytest.raises(RuntimeError) as caught:
            run.go()
        assert isinstance(translate(caught.value), OutOfMemory)
        assert digest_of(run) == before
        assert [e.action for e in events if isinstance(e, Relieved)] == [
            *["halve_micro_batch"] * 3,
            "checkpoint_activations",
        ]

    @pytest.mark.parametrize("interval", [1, 1000])
    def test_an_update_that_is_refused_is_taken_back(self, model: Path, tmp_path: Path, interval: int) -> None:
        """Weights were changed by then, some of them."""
        spec = spec_of(micro_batch_size=4, save_interval=interval)
        plain, _ = run_of(tmp_path / "a", model, spec, steps=12)
        plain.go()
        trainee = models.load(spec, model)
        optimizer = RefusedOnce(grouped(trainee.trainables.values(), 0.0), lr=spec.learning_rate, refused_at=11)
        tight, events = run_of(tmp_path / "b", model, spec, steps=12, trainee=trainee, optimizer=optimizer)
        assert tight.go() == "done"
        (relieved,) = [event for event in events if isinstance(event, Relieved)]
        assert (relieved.step, relieved.micro_batch_size) == (10, 2)
        assert tight.progress.tokens == plain.progress.tokens
        for name, tensor in weights_of(plain).items():
            assert torch.allclose(weights_of(tight)[name], tensor, atol=1e-6), name

    def test_an_update_refused_when_there_is_no_way_back_fails_by_name(self, model: Path, tmp_path: Path) -> None:
        spec = spec_of()
        trainee = models.load(spec, model)
        optimizer = RefusedOnce(grouped(trainee.trainables.values(), 0.0), lr=1e-3, refused_at=1)
        run, _ = run_of(tmp_path, model, spec, steps=12, trainee=trainee, optimizer=optimizer)
        run.keeping.last_good.allowed = False
        with pytest.raises(RuntimeError) as caught:
            run.go()
        assert isinstance(translate(caught.value), OutOfMemory)

    def test_copies_that_find_no_room_are_not_kept_and_the_run_goes_on(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise RuntimeError(self.REFUSED)

        run, _ = run_of(tmp_path, model, spec_of(), steps=4)
        monkeypatch.setattr("tiermesh.kernel.training.keeping.Keeping._snapshot", refuse)
        run.keeping.offer(run.progress)
        assert run.keeping.last_good.latest is None
        assert not run.keeping.last_good.wanted(run.progress.step), "it would be tried at each step"

    def test_large_copies_are_let_go_first(self, model: Path, tmp_path: Path) -> None:
        spec = spec_of(micro_batch_size=8, gradient_accumulation_steps=1)
        run, events = run_of(tmp_path, model, spec, steps=20, objective=self.refusing(4))
        run.look = lambda: Usage(1, 100, 0.01)  # of 100 bytes any copy is a large part
        assert run.go() == "done"
        assert [e.action for e in events if isinstance(e, Relieved)] == ["forget_copies", "halve_micro_batch"]
        assert run.keeping.last_good.latest is None


class RefusedOnce(torch.optim.AdamW):
    """Of a kind that nobody knows; at one of its steps memory is refused when the first weights are changed already."""

    def __init__(self, groups: Groups, *, lr: float, refused_at: int) -> None:
        super().__init__(groups, lr=lr, fused=True)
        self._steps, self._refused_at = 0, refused_at

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self._steps += 1
        if self._steps == self._refused_at:
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(1.0)
            raise RuntimeError(TestMemory.REFUSED)
        super().step()


class TestGoingOn:
    def test_a_run_taken_up_ends_like_one_that_never_stopped(self, model: Path, tmp_path: Path) -> None:
        spec = spec_of(lora={"dropout": 0.1}, save_interval=7)
        undisturbed, _ = run_of(tmp_path / "a", model, spec, steps=20)
        undisturbed.go()
        stopped, _ = run_of(tmp_path / "b", model, spec, steps=20)
        stopped.stopping = lambda: stopped.progress.step == 12
        assert stopped.go() == "stopped"
        taken_up, _ = run_of(tmp_path / "b", model, spec, steps=20)
        snapshot = taken_up.checkpoints.newest()
        assert snapshot is not None
        taken_up.take_up(snapshot)
        assert taken_up.progress.step == 12
        taken_up.go()
        assert digest_of(taken_up) == digest_of(undisturbed)
        assert taken_up.progress.loss == undisturbed.progress.loss

    @pytest.mark.parametrize("call", [3, 4])
    def test_a_step_dropped_half_way_leaves_no_trace(self, model: Path, tmp_path: Path, call: int) -> None:
        spec = spec_of(lora={"dropout": 0.1})
        undisturbed, _ = run_of(tmp_path / "a", model, spec, steps=4)
        undisturbed.go()
        objective = Spoiled(lambda _, loss: loss)
        stopped, _ = run_of(tmp_path / "b", model, spec, steps=4, objective=objective)
        stopped.stopping = lambda: objective.calls == call
        assert stopped.go() == "stopped"
        assert stopped.progress.step == 1 + (call == 4)
        stopped.stopping = lambda: False
        stopped.go()
        assert digest_of(stopped) == digest_of(undisturbed)

    @pytest.mark.parametrize("after", [0, 1, 3, 9])
    def test_a_kill_after_a_return_does_not_undo_it(self, model: Path, tmp_path: Path, after: int) -> None:
        """So many steps after it; the examples that were passed over stay passed over, and the end is the same."""
        spec = spec_of(learning_rate=5e-3, lora={"dropout": 0.1}, save_interval=1000)
        undisturbed, events = run_of(tmp_path / "a", model, spec, steps=40)
        ruin_at(undisturbed, 25)
        undisturbed.go()
        (back,) = [event for event in events if isinstance(event, RolledBack)]

        killed, _ = run_of(tmp_path / "b", model, spec, steps=40)
        ruin_at(killed, 25)
        kill_at(killed, back.to_step + after)
        with pytest.raises(Killed):
            killed.go()

        again, events = run_of(tmp_path / "b", model, spec, steps=40)
        snapshot = again.checkpoints.newest()
        assert snapshot is not None
        assert snapshot.step == back.to_step
        again.take_up(snapshot)
        assert again.progress.skipped == undisturbed.progress.skipped
        assert again.go() == "done"
        assert [event.step for event in events if isinstance(event, RolledBack)] == []
        assert digest_of(again) == digest_of(undisturbed)
        assert again.progress.rollbacks == 1

    def test_skipped_ranges_stay_skipped(self) -> None:
        progress = Progress(position=8, skipped=[[8, 12], [12, 16], [20, 24]])
        assert progress.next_position() == 16

    def test_relief_that_was_taken_is_taken_again(self, model: Path, tmp_path: Path) -> None:
        run, _ = run_of(tmp_path, model, spec_of(), steps=2)
        run.relieving.taken = Taken(halvings=1, checkpointing=True)
        run.go()
        again, _ = run_of(tmp_path, model, spec_of(), steps=2)
        snapshot = again.checkpoints.newest()
        assert snapshot is not None
        again.take_up(snapshot)
        assert again.relieving.taken == run.relieving.taken
        assert again.trainee.checkpointing


def test_an_early_stop_ends_a_run_whose_held_out_loss_rises(model: Path, tmp_path: Path) -> None:
    spec = spec_of(eval_interval=2, early_stop={"patience": 2}, learning_rate=0.3)
    run, events = run_of(tmp_path, model, spec, steps=100, held_out=Rows(6, seed=9), detector=None)
    assert run.go() == "done"
    held_out = [event for event in events if isinstance(event, Evaluated)]
    assert run.progress.step < 100
    assert not any(event.best for event in held_out[-2:])
    best = min(event.loss or math.nan for event in held_out)
    found = evaluation.held_out(run.trainee, TokenLoss(), Rows(6, seed=9), 2)
    assert found is not None
    assert found.loss == pytest.approx(best, rel=1e-5), "the result is not the best state"


class TestBest:
    """Rows that are learned, and others of which less and less is known."""

    def fields(self, **more: object) -> TrainingSpec:
        return spec_of(eval_interval=2, keep_last=1, learning_rate=1e-2, guard={"spike_z": None}, **more)

    def saved(self, events: list[TrainingEvent]) -> list[int]:
        return [event.step for event in events if isinstance(event, CheckpointSaved)]

    def new_bests(self, events: list[TrainingEvent]) -> list[int]:
        return [event.step for event in events if isinstance(event, Evaluated) and event.best and event.step > 0]

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tiermesh.kernel.training.keeping.QUICK_S", math.inf)

    def test_a_new_best_is_saved_and_kept_and_the_result_is_the_last_state(self, model: Path, tmp_path: Path) -> None:
        best_at = 6

        def worse_later(call: int, loss: torch.Tensor) -> torch.Tensor:
            return loss if torch.is_grad_enabled() else loss * (1.0 + 0.2 * abs(run.progress.step - best_at))

        run, events = run_of(tmp_path, model, self.fields(), steps=13, held_out=Rows(6), objective=Spoiled(worse_later))
        digests = digests_by_step(run)
        assert run.go() == "done"
        assert self.new_bests(events)[-1] == best_at
        assert self.saved(events) == [*self.new_bests(events), 13]
        best = run.checkpoints.best()
        assert best is not None
        assert best.name == f"step-{best_at:08d}"
        assert digest_of(run) == digests[13]

    def test_a_save_at_the_same_step_is_one_save(self, model: Path, tmp_path: Path) -> None:
        run, events = run_of(tmp_path, model, self.fields(save_interval=4), steps=8, held_out=Rows(6))
        assert run.go() == "done"
        assert self.new_bests(events) == [2, 4, 6, 8]
        assert self.saved(events) == [2, 4, 6, 8]

    @pytest.mark.parametrize("held_out", [None, Rows(6)])
    def test_where_none_is_kept_none_is_saved(self, model: Path, tmp_path: Path, held_out: Rows | None) -> None:
        keep_best = 0 if held_out else 1
        run, events = run_of(tmp_path, model, self.fields(keep_best=keep_best), steps=8, held_out=held_out)
        assert run.go() == "done"
        assert self.saved(events) == [8]

    def test_slow_saves_are_made_seldom(self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that takes a second is made after ten others at the soonest."""
        monkeypatch.setattr("tiermesh.kernel.training.keeping.QUICK_S", 0.0)
        seconds = itertools.count()
        run, events = run_of(tmp_path, model, self.fields(), steps=12, held_out=Rows(6))
        clock = SimpleNamespace(monotonic=lambda: float(next(seconds)))
        monkeypatch.setattr("tiermesh.kernel.training.keeping.time", clock)
        assert run.go() == "done"
        assert self.new_bests(events) == [2, 4, 6, 8, 10, 12]
        assert self.saved(events) == [2, 12]


def test_evaluating_changes_nothing(model: Path, tmp_path: Path) -> None:
    plain, _ = run_of(tmp_path / "a", model, spec_of(lora={"dropout": 0.1}), steps=6)
    watched, _ = run_of(
        tmp_path / "b", model, spec_of(lora={"dropout": 0.1}, eval_interval=1), steps=6, held_out=Rows(6)
    )
    plain.go()
    watched.go()
    assert digest_of(plain) == digest_of(watched)


def test_clipping_shortens_the_gradient_and_tells_its_length_before(model: Path, tmp_path: Path) -> None:
    spec = spec_of(max_grad_norm=0.01, optimizer="sgd", learning_rate=1.0)
    trainee = models.load(spec, model)
    optimizer = torch.optim.SGD(trainee.trainables.values(), lr=1.0)
    run, events = run_of(tmp_path, model, spec, steps=1, trainee=trainee, optimizer=optimizer)
    before = weights_of(run)
    run.go()
    moved = math.sqrt(sum(float((tensor - before[name]).square().sum()) for name, tensor in weights_of(run).items()))
    assert moved == pytest.approx(0.01, rel=1e-4)
    told = [event.grad_norm for event in events if isinstance(event, StepDone)]
    assert told[0] is not None
    assert told[0] > 0.1


def digests_by_step(run: Run) -> dict[int, str]:
    """Filled as the run goes: the state after each step."""
    found: dict[int, str] = {}
    look = run.look

    def noted() -> Usage:
        found[run.progress.step] = digest_of(run)
        return look()

    run.look = noted  # asked after every step, good or bad
    return found


def listen(run: Run, listener: Callable[[object], None]) -> None:
    """Besides what listens already."""
    say = run.say

    def both(event: TrainingEvent) -> None:
        say(event)
        listener(event)

    run.say = both


class Killed(Exception):
    """As SIGKILL does: nothing more is saved."""


def kill_at(run: Run, step: int) -> None:
    """When this step comes after a return, at its end; at once when it is the one that was returned to."""

    def kill(event: object) -> None:
        is_end = isinstance(event, StepDone) or (isinstance(event, Phase) and event.state == "completed")
        if is_end and run.progress.rollbacks and run.progress.step == step:
            raise Killed

    listen(run, kill)


def ruin_at(run: Run, step: int, factor: float = 6.0) -> None:
    """Ruin the weights once, as a bad update does, after this step."""
    done: list[int] = []

    def ruin(event: object) -> None:
        if isinstance(event, StepDone) and event.step == step and not done:
            done.append(step)
            with torch.no_grad():
                for tensor in run.trainee.trainables.values():
                    tensor.mul_(factor)

    listen(run, ruin)
