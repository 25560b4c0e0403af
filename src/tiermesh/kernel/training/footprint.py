"""What a step of a model takes in memory, counted on small copies of it and extrapolated. No table of constants.

Copies of the model with one and with two layers, of its true width and vocabulary, are trained for a moment in the very
way that the run will be, on a few rows of the run's own length. Everything counted is exact for these sizes, and it is
linear in the layers and in the rows. Rows longer than `COUNTED_TOKENS` are reckoned from shorter ones: B rows of T
tokens take a constant, a part that grows with B T, and one with B T² (where documents are kept apart by a mask).

What the C library's allocator takes beyond that is no constant: it keeps what was freed, in pieces that fit more or
less well, from a fifth more to twice as much. So it is measured: as a process of its own, with an allocator that has no
past, `python -m tiermesh.kernel.training.footprint` trains a copy of some layers at the run's own size for some steps,
and says by how much its resident memory grew. Two depths give the growth a layer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tiermesh.kernel.training import guard, memory, models, plugins
from tiermesh.kernel.training.assembly import objective_of
from tiermesh.kernel.training.checkpoints import Snapshot
from tiermesh.kernel.training.data.batches import NOTHING, MicroBatch, PairBatch
from tiermesh.kernel.training.loss import Objective
from tiermesh.kernel.training.models import Trainee
from tiermesh.kernel.training.optimizers import grouped, open_state
from tiermesh.kernel.training.state import capture
from tiermesh.protocol.training import TrainingSpec

COUNTED_TOKENS = 1024
"""The longest rows that are counted as they are. Shorter ones can't stand for each other: documents are widened to
multiples of 32 (see attention), and at 200 tokens a law through 128 and 256 was a third too low for dropout's masks."""
LEAST_TOKENS = 128
"""In all rows together: the loss works on as many rows of logits at a time."""

DEPTHS = (1, 2)

GROWTH_DEPTHS = (3, 8)
"""Layers of the copies whose growth is measured: a fraction of most models. With fewer the growth a layer is measured
too low (82 MiB a layer from 2 to 5, 95 from 5 to 8, of a model like Qwen2 with 4 rows of 512)."""
GROWTH_STEPS = 4
"""The first one finds no holes from the one before, and states that are kept to go back to make some more."""
KEPT_STATES = 2
"""One that is proven good, and the next to be."""
GROWTH_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Counted:
    """Bytes of one forward and backward pass. `kept`: what the backward pass needs; `forward` and `backward`: the most
    that was there at a time, what is kept included and gradients of weights not."""

    kept: float
    forward: float
    backward: float

    @property
    def peak(self) -> float:
        """The most at any time."""
        return max(self.forward, self.backward)


@dataclass(frozen=True, slots=True)
class Footprint:
    """A model's needs, without the runtime. Bytes."""

    weights: int
    trained: int
    """Of `weights`, those that are trained: as large as their gradients."""
    shapes: tuple[tuple[int, ...], ...]
    """Of the trained weights."""
    per_pass: Callable[[int], Counted]
    """For this many rows."""
    checkpointing: bool


def footprint(spec: TrainingSpec, folder: Path, *, checkpointing: bool) -> Footprint:
    """Of the model in `folder`, trained as `spec` says. Takes some seconds and the memory of two layers."""
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    layers = config.get_text_config().num_hidden_layers
    objective, sizes = objective_of(spec), counted_sizes(spec.seq_len)
    counted: list[list[Counted]] = []
    weights, trained, shapes = [], [], []
    for depth in DEPTHS:
        with tempfile.TemporaryDirectory(prefix="tiermesh-probe-") as place:
            _write_shallow(config, depth, Path(place))
            trainee = models.load(spec, Path(place))
            trainee.checkpoint(on=checkpointing)
            weights.append(_weight_bytes(trainee))
            trained.append(sum(one.nbytes for one in trainee.trainables.values()))
            shapes.append([tuple(one.shape) for one in trainee.trainables.values()])
            counted.append([_count(trainee, objective, spec, rows, tokens) for rows, tokens in sizes])
            del trainee

    def per_pass(rows: int) -> Counted:
        at = [
            [_at_size(sizes, [getattr(one, name) for one in of], rows, spec.seq_len) for of in counted]
            for name in ("kept", "forward", "backward")
        ]
        return Counted(*(_at_depth(first, second, layers) for first, second in at))

    return Footprint(
        weights=round(_at_depth(weights[0], weights[1], layers)),
        trained=round(_at_depth(trained[0], trained[1], layers)),
        shapes=tuple(_deep_shapes(shapes[0], shapes[1], layers)),
        per_pass=per_pass,
        checkpointing=checkpointing,
    )


def growth_bytes(spec: TrainingSpec, folder: Path, rows: int, *, checkpointing: bool) -> int | None:
    """By how much a process grows beyond the weights when it trains the model in `folder` with micro-batches of `rows`:
    gradients, optimizer, activations, and what the allocator adds. None where the system can't tell."""
    if sys.platform != "linux":
        return None
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    layers: int = config.get_text_config().num_hidden_layers
    depths = sorted({min(depth, layers) for depth in GROWTH_DEPTHS})
    grown = [_growth_of_copy(spec, folder, rows, depth, checkpointing=checkpointing) for depth in depths]
    if None in grown:
        return None
    first, last = float(grown[0] or 0), float(grown[-1] or 0)
    slope = (last - first) / (depths[-1] - depths[0]) if len(depths) > 1 else 0.0
    return round(last + slope * (layers - depths[-1]))


def _growth_of_copy(spec: TrainingSpec, folder: Path, rows: int, depth: int, *, checkpointing: bool) -> int | None:
    asked = {"spec": spec.model_dump(mode="json"), "folder": str(folder), "rows": rows, "depth": depth}
    command = [sys.executable, "-m", "tiermesh.kernel.training.footprint", "--threads", str(torch.get_num_threads())]
    try:
        ran = subprocess.run(
            command,
            input=json.dumps(asked | {"checkpointing": checkpointing}),
            capture_output=True,
            text=True,
            timeout=GROWTH_TIMEOUT_S,
            check=True,
        )
        return int(ran.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _measure_growth(spec: TrainingSpec, folder: Path, rows: int, depth: int, *, checkpointing: bool) -> int:
    """In a process of its own."""
    with tempfile.TemporaryDirectory(prefix="tiermesh-probe-") as place:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        _write_shallow(config, depth, Path(place))
        trainee = models.load(spec, Path(place))
    trainee.checkpoint(on=checkpointing)
    groups = grouped(trainee.trainables.values(), spec.weight_decay)
    optimizer = plugins.make_optimizer(spec.optimizer, groups, spec.learning_rate)
    objective, batch = objective_of(spec), _batch(trainee, spec.task, rows, spec.seq_len)
    several = spec.effective_batch > rows
    memory.trim()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory.resident_bytes()
    open_state(optimizer)
    kept: list[Snapshot] = []
    for _ in range(GROWTH_STEPS):
        for _ in range(1 + several):
            objective.summed(trainee, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # As the loop does: what stays lies between what comes and goes.
        if (
            len(kept) < KEPT_STATES
            and 3 * sum(one.nbytes for one in trainee.trainables.values()) <= guard.IN_MEMORY_BYTES
        ):
            kept.append(capture(trainee.trainables, optimizer, step=0, position=0, loss=None, facts={}))
    return memory.peak_bytes() - before - sum(one.nbytes for copy in kept for one in copy.tensors.values())


def made_up(rows: int, tokens: int, vocabulary: int) -> MicroBatch:
    """Rows of two documents each, as packing makes them."""
    tokens_BT = (torch.arange(rows * tokens) % vocabulary).view(rows, tokens)
    positions_BT = torch.arange(tokens).repeat(rows, 1)
    positions_BT[:, tokens // 2 :] -= tokens // 2
    labels_BT = tokens_BT.roll(-1, 1)
    labels_BT[:, -1] = NOTHING
    return MicroBatch(tokens_BT, positions_BT, labels_BT, None, float(rows * (tokens - 1)))


def _at_depth(first: float, second: float, layers: int) -> float:
    return first + (second - first) * (layers - 1)


def counted_sizes(tokens: int) -> tuple[tuple[int, int], ...]:
    """Rows and tokens to count at, for a run with rows of `tokens`."""
    if tokens > COUNTED_TOKENS:
        return (1, COUNTED_TOKENS // 2), (2, COUNTED_TOKENS // 2), (1, COUNTED_TOKENS)
    rows = -(-LEAST_TOKENS // tokens)
    return (rows, tokens), (2 * rows, tokens)


def _at_size(sizes: Sequence[tuple[int, int]], figures: Sequence[float], rows: int, tokens: int) -> float:
    """On constant + a B T + b B T², through what was counted at `sizes`; without the last term when lengths are one."""
    terms = len(sizes)
    points = torch.tensor([[1.0, b * t, b * t * t][:terms] for b, t in sizes], dtype=torch.float64)
    factors = torch.linalg.solve(points, torch.tensor(figures, dtype=torch.float64))
    return float(factors @ torch.tensor([1.0, rows * tokens, rows * tokens * tokens][:terms], dtype=torch.float64))


def _deep_shapes(first: list[tuple[int, ...]], second: list[tuple[int, ...]], layers: int) -> Iterator[tuple[int, ...]]:
    """Those of all layers: the second copy's, and what it has more than the first for each further layer."""
    more = list(second)
    for shape in first:
        more.remove(shape)
    yield from second
    for _ in range(layers - 2):
        yield from more


def _write_shallow(config: Any, depth: int, place: Path) -> None:
    """The model with fewer layers and nothing in them."""
    shallow = type(config).from_dict(config.to_dict())
    text = shallow.get_text_config()
    text.num_hidden_layers = depth
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = text.layer_types[:depth]
    transformers.logging.disable_progress_bar()
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(shallow, dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.tie_weights()
    model.save_pretrained(place)


def _weight_bytes(trainee: Trainee) -> int:
    """Every storage once, with what quantised weights need to be read."""
    storages: dict[int, int] = {}
    for model in (trainee.model, trainee.before):
        if model is None:
            continue
        for tensor in (*model.parameters(), *model.buffers()):
            for part in (tensor, *_quantisation(getattr(tensor, "quant_state", None))):
                storages[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
    return sum(storages.values())


def _quantisation(state: Any) -> Iterator[torch.Tensor]:
    for name in ("absmax", "code", "offset"):
        part = getattr(state, name, None)
        if isinstance(part, torch.Tensor):
            yield part
    if getattr(state, "state2", None) is not None:
        yield from _quantisation(state.state2)


def _batch(trainee: Trainee, task: str, rows: int, tokens: int) -> Any:
    batch = made_up(rows, tokens, trainee.causal.config.get_text_config().vocab_size)
    return PairBatch(batch, batch) if task == "preference" else batch


def _count(trainee: Trainee, objective: Objective, spec: TrainingSpec, rows: int, tokens: int) -> Counted:
    batch = _batch(trainee, spec.task, rows, tokens)
    objective.summed(trainee, batch).backward()  # type: ignore[no-untyped-call]  # makes the gradients
    weights = {one.untyped_storage().data_ptr() for one in trainee.model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with _Live() as live:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = objective.summed(trainee, batch)
        forward, live.peak = live.peak, live.now
        loss.backward()  # type: ignore[no-untyped-call]
    return Counted(sum(kept.values()), forward, live.peak)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that were made while it is entered and are still there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()  # noqa: SLF001  # the storage's identity
        if key in self._known or not size:
            return
        self.now += size
        self.peak = max(self.peak, self.now)
        self._known[key] = weakref.ref(storage, lambda _: self._gone(key, size))

    def _gone(self, key: int, size: int) -> None:
        self.now -= size
        self._known.pop(key, None)


def main() -> None:
    """Read what to measure from standard input, print bytes."""
    parser = argparse.ArgumentParser(prog="python -m tiermesh.kernel.training.footprint")
    parser.add_argument("--threads", type=int, required=True)
    torch.set_num_threads(parser.parse_args().threads)
    asked = json.load(sys.stdin)
    spec, folder = TrainingSpec.model_validate(asked["spec"]), Path(asked["folder"])
    grown = _measure_growth(spec, folder, asked["rows"], asked["depth"], checkpointing=asked["checkpointing"])
    sys.stdout.write(f"{grown}\n")


if __name__ == "__main__":
    main()
