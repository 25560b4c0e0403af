"""Compiled layers train as the others do, where there is a compiler; where there is none, the run does without."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.training.workers import ALLOCATOR, events, plan_run, run_to_end, weights_digest, write_texts
from tests import tiny_model
from tests.training.runs import Rows, run_of, spec_of
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._functorch.partitioners import min_cut_rematerialization_partition

from tiermesh.cli.estimate_view import PARTS, show_estimate
from tiermesh.cli.run_view import line_of
from tiermesh.kernel.training import models
from tiermesh.kernel.training.compiling import Compiled, Refused, commonest, compile_blocks
from tiermesh.kernel.training.data.batches import MicroBatch
from tiermesh.kernel.training.data.order import Order
from tiermesh.kernel.training.loss import TokenLoss
from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_events import Phase, Resumed, StepDone, TrainingEvent, Warned

# Compilers warn of things that would be taken for errors of the code that they compile.
pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = 10
CUT = min_cut_rematerialization_partition
"""How torch's own compiler divides what it traced into forward and backward."""
NO_COMPILER = {**ALLOCATOR, "CXX": "/nowhere/g++"}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """What is compiled, and that nothing more is to be, holds for a whole process."""
    yield
    torch.compiler.reset()
    torch.compiler.set_stance("default")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model.build_folder(tmp_path / "model")


def one_layer(model: Path) -> Path:
    """The same, cut down to what is compiled in seconds."""
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 1}))
    return model


def compiled_trainee(spec: TrainingSpec, model: Path) -> models.Trainee:
    trainee = models.load(spec, model)
    found = compile_blocks(trainee, TokenLoss(), Rows().micro([0, 1]))
    assert isinstance(found, Compiled)
    assert found.then_s < found.first_s
    return trainee


class Traces:
    """A compiler that runs what it is given as it is, and counts."""

    made = ran = 0

    def __call__(self, graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        self.made += 1

        def run(*inputs: Any) -> Any:
            self.ran += 1
            return graph(*inputs)

        return run


def losses(told: Sequence[TrainingEvent]) -> list[float]:
    return [event.loss or 0.0 for event in told if isinstance(event, StepDone)]


@pytest.mark.timeout(900)
@pytest.mark.slow
@pytest.mark.long
def test_they_train_to_the_same_losses(tmp_path: Path, model: Path) -> None:
    """With dropout, and with an evaluation of other shapes before and after."""
    plain = spec_of(learning_rate=1e-2, lora={"dropout": 0.1})
    spec = plain.model_copy(update={"compile": True})
    found: list[list[float]] = []
    for one, trainee in ((spec, compiled_trainee(spec, model)), (plain, models.load(plain, model))):
        run, told = run_of(tmp_path / str(len(found)), model, one, steps=STEPS, trainee=trainee, held_out=Rows(5))
        assert run.go() == "done"
        found.append(losses(told))
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    assert found[0][-1] < found[0][0]


def test_a_run_goes_on_compiled_or_not_from_either_s_checkpoint(tmp_path: Path, model: Path) -> None:
    """And nothing is compiled after the start, whatever is computed. Layers are traced and run as their trace: the C++
    compiler, which takes a minute or two, is in the long form above."""
    one_layer(model)
    traces = Traces()
    torch.compiler.set_stance("default", force_backend=aot_autograd(fw_compiler=traces, partition_fn=CUT))
    plain = spec_of(learning_rate=1e-2, lora={"dropout": 0.1})
    spec = plain.model_copy(update={"compile": True})
    undisturbed, told = run_of(tmp_path / "undisturbed", model, plain, steps=STEPS)
    undisturbed.go()
    trainee = compiled_trainee(spec, model)
    fresh = {name: one.detach().clone() for name, one in trainee.trainables.items()}
    made, ran = traces.made, traces.ran
    for name, kinds in {"to": (False, True), "from": (True, False)}.items():
        seen: list[TrainingEvent] = []
        for steps, compiled in zip((4, STEPS), kinds, strict=True):
            settings = {"trainee": trainee, "held_out": Rows(5)} if compiled else {}
            run, heard = run_of(tmp_path / name, model, spec if compiled else plain, steps=STEPS, **settings)
            if steps == STEPS:
                snapshot = run.checkpoints.newest()
                assert snapshot is not None
                run.take_up(snapshot)
            run.stopping = lambda run=run, steps=steps: run.progress.step == steps  # type: ignore[misc]
            run.go()
            seen += heard
        assert losses(seen) == pytest.approx(losses(told), abs=1e-4)
        with torch.no_grad():
            for parameter, one in fresh.items():
                trainee.trainables[parameter].copy_(one)
    assert traces.made == made == 2  # forward and backward
    micro_batches = 2 * (STEPS - 4) + 2 * 4
    assert traces.ran - ran == 2 * micro_batches


@pytest.mark.parametrize("memory", [True, False])
def test_what_fails_in_the_trial_is_no_failure_of_the_run(model: Path, *, memory: bool) -> None:
    trainee = models.load(spec_of(compile=True), model)
    before = {name: one.detach().clone() for name, one in trainee.trainables.items()}
    graphs = counters["stats"]["unique_graphs"]

    class Failing:
        def summed(self, *_: object) -> torch.Tensor:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory" if memory else "no such op")

    found = compile_blocks(trainee, Failing(), Rows().micro([0, 1]))
    assert isinstance(found, Refused)
    assert found.reason == ("out of memory" if memory else "RuntimeError: no such op")
    assert trainee.compiled is None
    TokenLoss().summed(trainee, Rows().micro([0, 1])).backward()  # type: ignore[no-untyped-call]
    assert counters["stats"]["unique_graphs"] == graphs
    assert all(torch.equal(one, before[name]) for name, one in trainee.trainables.items())


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_without_a_compiler_a_run_is_told_so_and_is_the_one_that_did_not_ask(tmp_path: Path, model: Path) -> None:
    data = write_texts(tmp_path / "data.jsonl", 60)
    fields = {"seq_len": 64, "micro_batch_size": 2, "max_steps": 4, "save_interval": 2, "precision": "fp32"}
    plain = plan_run(tmp_path / "plain", model, data, **fields)
    run_to_end(plain)
    asked = plan_run(tmp_path / "asked", model, data, compile=True, **fields)
    run_to_end(asked, environment=NO_COMPILER)
    (warned,) = [event.message for event in events(asked) if isinstance(event, Warned)]
    assert "not compiled" in warned
    assert "there is no C++ compiler" in warned
    assert weights_digest(asked) == weights_digest(plain)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_what_compiling_takes_is_told(tmp_path: Path, model: Path) -> None:
    """By the estimate, cold and warm; by the run, which finds it kept; and a later start without says what differs."""
    data = write_texts(tmp_path / "data.jsonl", 60)
    fields = {"seq_len": 64, "micro_batch_size": 2, "max_steps": 6, "save_interval": 2, "precision": "fp32"}
    folder = plan_run(tmp_path / "run", one_layer(model), data, compile=True, **fields)
    environment = {**ALLOCATOR, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kept")}
    run_to_end(folder, "--estimate", environment=environment)
    found = json.loads(folder.estimate.read_text())
    assert found["compiling_s"] < found["compiling_first_s"]
    assert found["loading_s"] > found["compiling_s"]
    run_to_end(folder, environment=environment)
    told = [event.detail for event in events(folder) if isinstance(event, Phase) and event.state == "completed"]
    cold, warm = [detail for detail in told if detail.startswith("layers compiled in")]
    assert "kept for later starts" in cold
    assert "an earlier start left" in warm
    plan_run(folder.path, model, data, **fields | {"max_steps": 8})
    run_to_end(folder)
    (resumed,) = [event for event in events(folder) if isinstance(event, Resumed)]
    assert "compile was True, is False: losses may differ in their last digits" in resumed.differences


def test_a_person_is_shown_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    took = "layers compiled in 48.2 s (and kept for later starts)"
    assert line_of(Phase(phase="probe", state="completed", detail=took)) == took
    known: dict[str, Any] = {f"{part}_bytes": 0 for part in PARTS} | {
        "micro_batch_size": 2,
        "checkpointing": False,
        "fits": True,
    }
    known |= {"steps": 9, "step_s": 1.0, "seconds": 20.0, "seconds_low": 16.0, "seconds_high": 24.0}
    show_estimate(known | {"compiling_first_s": 48.2, "compiling_s": 7.9})
    assert "to compile the layers: 8 s at each start here (the first time, just now: 48 s)" in capsys.readouterr().out


class Widths:
    """Rows of these widths; of those below zero, positions restart in the middle."""

    digest = "widths"

    def __init__(self, *widths: int) -> None:
        self._widths = widths
        self.rows = len(widths)

    def micro(self, rows: Sequence[int], *, epoch: int = 0) -> MicroBatch:
        width = max(abs(self._widths[row]) for row in rows)
        positions_BT = torch.arange(width).repeat(len(rows), 1)
        if any(self._widths[row] < 0 for row in rows):
            positions_BT[:, width // 2 :] -= width // 2
        tokens_BT = torch.zeros(len(rows), width, dtype=torch.int64)
        return MicroBatch(tokens_BT, positions_BT, tokens_BT, None, 1.0)

    def targets(self, rows: Sequence[int]) -> float:
        return float(len(rows))

    def tokens(self, rows: Sequence[int]) -> int:
        return len(rows)


@pytest.mark.parametrize(
    ("widths", "chosen", "share"),
    [
        ((8,), 8, 1.0),
        ((8, 8, 8, 8), 8, 1.0),
        ((8, 16, 16, 16), 16, 0.75),
        ((-8, 8, -8, 4), -8, 0.5),
    ],
)
def test_layers_are_compiled_for_what_is_commonest(widths: tuple[int, ...], chosen: int, share: float) -> None:
    source = Widths(*widths)
    found = commonest(source, Order(seed=0, rows=source.rows), 1)
    assert found.batch.tokens_BT.shape == (1, abs(chosen))
    assert bool((found.batch.positions_BT.diff() == 1).all()) == (chosen > 0)
    assert found.share == share
