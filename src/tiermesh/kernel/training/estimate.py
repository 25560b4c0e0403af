"""What a run will take, told before it begins: memory by its parts, and time.

Memory is reckoned from what `footprint` counts; time from trying it (`duration`), if it fits. Both are of this machine.

    total = runtime + the larger of    loading:  weights, and the file they come from
                                       a step:   weights + states to go back to
                                                 + allocator x (gradients + optimizer + activations + work),
                                                 and a little for `CAUTION`

`allocator` is what the C library takes beyond what is asked of it, measured for this run (see footprint).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from tiermesh.core.relief import SHARES, Level
from tiermesh.kernel.training import guard, models, plugins
from tiermesh.kernel.training.assembly import assemble, ready
from tiermesh.kernel.training.compiling import Compiled, commonest, compile_again
from tiermesh.kernel.training.duration import Duration, estimate_duration
from tiermesh.kernel.training.evaluation import moved
from tiermesh.kernel.training.footprint import KEPT_STATES, Footprint, footprint, growth_bytes
from tiermesh.kernel.training.memory import Memory as RunMemory
from tiermesh.kernel.training.memory import free_bytes, resident_bytes
from tiermesh.kernel.training.optimizers import grouped
from tiermesh.protocol.training_events import Phase

if TYPE_CHECKING:
    from tiermesh.kernel.training.events import Events
    from tiermesh.kernel.training.orders import Orders
    from tiermesh.kernel.training.run import Run
    from tiermesh.protocol.run_folder import RunFolder, RunPlan
    from tiermesh.protocol.training import TrainingSpec
    from tiermesh.protocol.training_events import TrainingEvent

READ_AGAIN_S = 0.5
"""For tokens that are in the cache; 100,000 records take a fraction of it."""

ALLOCATOR = 1.5
"""Resident memory over what was asked for, where growth can't be measured."""

CAUTION = 1.12
"""What loading leaves behind (40 MiB), holes that come with more steps and layers than are tried, and what differs from
one run to the next of the same kind (150 of 2,300 MiB were seen). Too high an estimate costs a smaller batch, too low a
one costs the run."""

MEASURED_TOKENS = 4096
"""Of a micro-batch whose growth is measured; larger ones grow as these do."""

WHOLE_SHAPE_ELEMENTS = 1 << 22
"""An optimizer's state is made once for each shape up to this size; that of larger ones is in proportion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """By its parts, bytes."""

    runtime_bytes: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    rollback_bytes: int
    activations_bytes: int
    logits_bytes: int
    """Logits and all else that comes and goes within a step."""
    allocator_bytes: int
    loading_bytes: int
    total_bytes: int
    limit_bytes: int
    micro_batch_size: int
    """That of the spec, or smaller when only that fits."""
    checkpointing: bool
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiling:
    """Seconds that compiling the layers takes at the first start on this machine, and at later ones. None: it was not
    asked for, or it can't be done; of the first start also where an earlier one had left all that is needed."""

    compiling_first_s: float | None = None
    compiling_s: float | None = None

    @property
    def spared_s(self) -> float:
        """By how much a start after this one is shorter."""
        return 0.0 if self.compiling_first_s is None else self.compiling_first_s - (self.compiling_s or 0.0)


def write_estimate(folder: RunFolder, plan: RunPlan, events: Events, orders: Orders, limit: int | None) -> None:
    """Write `estimate.json` for the run that `plan` describes. Steps are tried only where they fit."""
    spec, model_folder = plan.spec, Path(plan.model_path)
    starting_s = time.time() - psutil.Process().create_time()
    events.say(Phase(phase="probe", state="started", detail="memory"))
    tokenizer = models.load_tokenizer(model_folder)  # a part of the runtime
    memory = estimate_memory(spec, model_folder, limit)
    del tokenizer
    duration, compiling = Duration(), Compiling()
    if memory.fits:
        micro_batch = {"micro_batch_size": memory.micro_batch_size, "checkpointing": memory.checkpointing}
        accumulation = {"gradient_accumulation_steps": -(-spec.effective_batch // memory.micro_batch_size)}
        smaller = plan.model_copy(update={"spec": spec.model_copy(update=micro_batch | accumulation)})
        loading = Loading(events.say)
        parts = assemble(folder, smaller, loading.say)
        run = ready(parts, events, orders, RunMemory(memory.limit_bytes, parts.trainee.device))
        loading_s = starting_s + loading.seconds()
        compiling = _compiling(run)
        events.say(Phase(phase="probe", state="started", detail="time"))
        duration = estimate_duration(run, loading_s - compiling.spared_s)
    told = {**asdict(memory), **asdict(duration), **asdict(compiling)}
    folder.estimate.write_text(json.dumps(told) + "\n", "utf-8")
    events.say(Phase(phase="probe", state="completed"))


def _compiling(run: Run) -> Compiling:
    """What was compiled just now is compiled again, to see what it takes when it is kept."""
    found = run.trainee.compiled
    if found is None or found.was_kept:
        return Compiling(compiling_s=None if found is None else found.first_s)
    most = commonest(run.source, run.order, run.micro_batch)
    again = compile_again(run.trainee, run.objective, moved(most.batch, run.trainee.device))
    later_s = again.first_s if isinstance(again, Compiled) else found.first_s
    return Compiling(compiling_first_s=found.first_s, compiling_s=later_s)


class Loading:
    """How long it takes to assemble a run. Of the data only what another run will need, which finds its tokens there
    (`READ_AGAIN_S`): the estimate itself may have been the first to read it."""

    def __init__(self, say: Callable[[TrainingEvent], None]) -> None:
        self._say = say
        self._began = time.monotonic()
        self._reading_from: float | None = None
        self._reading_s = 0.0

    def say(self, event: TrainingEvent) -> None:
        """Hear it, and pass it on."""
        match event:
            case Phase(phase="data", state="started") if self._reading_from is None:
                self._reading_from = time.monotonic()
            case Phase(phase="data", state="completed") if self._reading_from is not None:
                self._reading_s = time.monotonic() - self._reading_from
        self._say(event)

    def seconds(self) -> float:
        """Until now."""
        return time.monotonic() - self._began - max(0.0, self._reading_s - READ_AGAIN_S)


def estimate_memory(spec: TrainingSpec, folder: Path, limit_bytes: int | None) -> Memory:
    """Of the run that `spec` describes; with a smaller micro-batch and checkpointing, as the run would take them, when
    it does not fit otherwise. Call before a model is loaded: what this process has now counts as the runtime."""
    runtime, limit = resident_bytes(), limit_bytes or free_bytes()
    kinds = [spec.checkpointing is True] + [True] * (spec.checkpointing == "auto")
    found = None
    for checkpointing in kinds:
        needs = footprint(spec, folder, checkpointing=checkpointing)
        optimizer = optimizer_bytes(spec, needs.shapes)
        grown = _grown(spec, folder, needs, optimizer)
        for rows in _sizes(spec.micro_batch_size):
            found = _reckon(spec, needs, rows, runtime, optimizer, file_bytes(folder), limit, grown)
            if found.fits:
                return found
    assert found is not None
    return found


def optimizer_bytes(spec: TrainingSpec, shapes: Sequence[tuple[int, ...]]) -> int:
    """What the spec's optimizer keeps for weights of these shapes: it is asked, with weights of zeros."""
    sizes: dict[tuple[int, ...], int] = {}
    for shape in set(shapes):
        elements = torch.Size(shape).numel()
        part = shape if elements <= WHOLE_SHAPE_ELEMENTS else (WHOLE_SHAPE_ELEMENTS // 2048, 2048)
        sizes[shape] = round(_state_bytes(spec, part) * elements / torch.Size(part).numel())
    return sum(sizes[shape] for shape in shapes)


def _state_bytes(spec: TrainingSpec, shape: tuple[int, ...]) -> int:
    parameter = torch.nn.Parameter(torch.zeros(shape))
    groups = grouped([parameter], spec.weight_decay)
    optimizer = plugins.make_optimizer(spec.optimizer, groups, spec.learning_rate)
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = optimizer.state[parameter]
    return sum(one.nbytes for one in state.values() if isinstance(one, torch.Tensor))


def _reckon(
    spec: TrainingSpec, needs: Footprint, rows: int, runtime: int, optimizer: int, file: int, limit: int, grown: float
) -> Memory:
    """`grown`: resident growth over what is counted."""
    counted = needs.per_pass(rows)
    state = needs.trained + optimizer
    rollback = KEPT_STATES * state if 3 * needs.trained <= guard.IN_MEMORY_BYTES else 0
    passing = _passing(spec, needs, rows)
    beyond = round((optimizer + passing) * (grown - 1))
    step = needs.weights + optimizer + rollback + passing + beyond
    loading = needs.weights + file
    total = round(max((runtime + step) * CAUTION, runtime + loading))
    return Memory(
        runtime_bytes=runtime,
        weights_bytes=needs.weights,
        gradients_bytes=needs.trained,
        optimizer_bytes=optimizer,
        rollback_bytes=rollback,
        activations_bytes=round(counted.kept),
        logits_bytes=round(counted.peak - counted.kept),
        allocator_bytes=beyond,
        loading_bytes=loading,
        total_bytes=total,
        limit_bytes=limit,
        micro_batch_size=rows,
        checkpointing=needs.checkpointing,
        fits=total <= limit * SHARES[Level.SEVERE],
    )


def _passing(spec: TrainingSpec, needs: Footprint, rows: int) -> float:
    """The most that comes and goes within a step. With a single micro-batch gradients come as activations go."""
    counted = needs.per_pass(rows)
    several = spec.effective_batch > rows
    return counted.peak + (needs.trained if several else max(0.0, needs.trained - counted.kept))


def _grown(spec: TrainingSpec, folder: Path, needs: Footprint, optimizer: int) -> float:
    """Measured at the largest of the run's sizes that is sure not to fill the machine."""
    rows = max(1, min(spec.micro_batch_size, MEASURED_TOKENS // spec.seq_len))
    growth = growth_bytes(spec, folder, rows, checkpointing=needs.checkpointing)
    return ALLOCATOR if growth is None else max(1.0, growth / (optimizer + _passing(spec, needs, rows)))


def _sizes(micro_batch: int) -> list[int]:
    """The sizes that relief would come to."""
    return [micro_batch >> halvings for halvings in range(micro_batch.bit_length())]


def file_bytes(folder: Path) -> int:
    """Pages of the file that stay mapped until the model is whole."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
