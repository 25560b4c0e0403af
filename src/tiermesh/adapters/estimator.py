"""What a job would take on this node: from a short trial of its real run, or from what an equal one came to.

Theory of operation. A trial (`kernel.training --estimate`) loads the model, reckons the memory and tries some steps:
seconds to half a minute. What it finds depends on the model, on the shape of the run (method, sizes, precision, ...;
all of the spec but `FREE` fields) and on how full its rows are, not on what is in them. So it is kept on disk by these,
and only the number of steps is reckoned anew for other data. Of data it is kept how many rows it makes: the trial tells
it, else the data is looked at, which costs about a second.

| known of the shape | known of the data | what is done                                  |
|--------------------|-------------------|-----------------------------------------------|
| yes                | yes               | nothing is started                            |
| any                | no                | the data is looked at, then as above or below |
| no                 | yes               | a trial, after the one under way              |

One trial runs at a time: two would measure one another. Of equal ones the second waits for the first one's answer.
While this node trains, a trial measures the training too: what it finds is an upper end, and is tried again when it is
idle.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from tiermesh.adapters.data_inspector import inspect_data
from tiermesh.adapters.trainer import Ending, Launch, OnRecord, Trainer, default_threads
from tiermesh.core.admission import GIB, Machine
from tiermesh.core.jobs import Estimate
from tiermesh.core.price import Declared, cost_of, price_of
from tiermesh.errors import BadData, DataUnusable, EnvironmentUnfit, InvalidSpec, JobRefused
from tiermesh.protocol.run_folder import RunFolder, RunPlan
from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_events import DataReady, Failed, TrainingEvent
from tiermesh.protocol.training_plugins import READER_FORMATS
from tiermesh.types import Hardware, NodeId

log = logging.getLogger(__name__)

VERSION = 1
"""Of what is kept."""
FREE = frozenset(
    {
        *("model_name", "dataset_path", "eval_path", "target_gpu", "num_epochs", "max_steps", "learning_rate"),
        *("weight_decay", "max_grad_norm", "scheduler", "warmup", "seed", "data", "dpo", "guard", "early_stop"),
        *("keep_last", "keep_best", "log_interval", "tensorboard", "wandb", "callbacks"),
    }
)
"""Fields that change neither memory nor the time of a step. A field that a later version adds is none of them."""
LIBRARIES = ("torch", "transformers", "peft")
"""Another version of them is another machine."""
STEPS_AN_OCTAVE = 4
"""How full rows are counts in steps of a fifth: as exact as the time is known."""
MAX_AGE_S = 30 * 24 * 3600.0
"""Machines change: a fan fails, memory is added."""
KEPT = 1000
"""Files of each kind, the newest."""
TRIAL_S = 600.0
"""Loading a large model from a slow disk, then half a minute. Longer, and something hangs."""
MEMORY_LOW, MEMORY_HIGH = 0.8, 1.05
"""Of the reckoned memory, which errs on the careful side."""
BUSY_LOW = 0.5
"""Of a time that was measured while this node trained: alone it has all the cores."""
FITS_SHARE = 0.92
"""Of a limit; above it a run begins to make itself smaller (`core.relief`)."""
NEAR_LIMIT = 1.25
"""A trial that had to make itself smaller counts for limits that differ by no more."""

T = TypeVar("T", bound="_Kept")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A file of the cache. `at`: Unix seconds."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial(_Kept):
    """What a shape came to. Seconds; `evaluating_s` and `saving_s` are of a run of `steps`, `once_s` is what any run of
    this shape takes besides its steps: loading, the first slow step, the canary."""

    total_bytes: int
    limit_bytes: int
    micro_batch_size: int
    checkpointing: bool
    fits: bool
    steps: int
    step_s: float
    spread: float
    """By which share the time may be off, on either side."""
    once_s: float
    evaluating_s: float
    saving_s: float
    is_smaller: bool
    """Did it fit only with a smaller micro-batch, or with activations computed again?"""
    was_busy: bool
    """Did this node train meanwhile?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount(_Kept):
    """What data is, as a spec reads it: rows to train on, and the tokens in each on average. `exact`: a run counted
    them; to look at the data gives them but for those that are held out or repeated."""

    rows: int
    exact: bool
    row_tokens: float


class Estimator:
    """One for a node, on one loop. `folder` is its own. `is_busy`: does this node train now?"""

    def __init__(
        self,
        *,
        folder: Path,
        node: NodeId,
        declared: Declared,
        hardware: Callable[[], Hardware],
        memory: Callable[[], Machine],
        is_busy: Callable[[], bool],
        supervise: Callable[[], OnRecord],
    ) -> None:
        self._folder = folder
        self._node = node
        self._declared = declared
        self._hardware = hardware
        self._memory = memory
        self._is_busy = is_busy
        self._supervise = supervise
        self._slot = asyncio.Lock()
        self._under_way: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def estimate(self, plan: RunPlan) -> Estimate:
        """Of a run of `plan`, on this node, with its price. May wait for other trials, and takes up to half a minute
        more itself, unless an equal one was tried before; whoever stops waiting stops no trial.

        Raises `JobRefused` where it does not fit or can't be tried here, `InvalidSpec` and `DataUnusable` where it
        would fail anywhere.
        """
        data_key = _data_key(plan)
        amount = await self._amount(plan, data_key)
        shape_key = _shape_key(plan, amount)
        trial = await self._known(plan, shape_key)
        fresh = trial is None
        if trial is None:
            await self._tried(plan, shape_key, data_key, amount)
            trial = await asyncio.to_thread(self._kept, Trial, shape_key)
            amount = await self._amount(plan, data_key)
        if trial is None:
            raise JobRefused("what was tried on this node could not be kept; is its disk full?")
        if not trial.fits:
            raise JobRefused(
                f"it needs about {_gib(trial.total_bytes)} with {_rows(trial.micro_batch_size)} at once, and "
                f"{_gib(trial.limit_bytes)} were free on this node"
            )
        return await asyncio.to_thread(self._priced, plan, trial, amount, fresh)

    async def close(self) -> None:
        """End what is being tried. May be called more than once."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _amount(self, plan: RunPlan, key: str) -> Amount:
        amount = await asyncio.to_thread(self._kept, Amount, key)
        if amount is None:
            amount = await asyncio.to_thread(_looked_at, plan)
            await asyncio.to_thread(self._keep, key, amount)
        return amount

    async def _known(self, plan: RunPlan, key: str) -> Trial | None:
        """From the cache, as far as it holds now."""
        trial = await asyncio.to_thread(self._kept, Trial, key)
        if trial is None or (trial.was_busy and not self._is_busy()):
            return None
        machine = self._memory()
        limit = plan.spec.memory_limit or machine.free_bytes
        if not trial.fits or trial.is_smaller:
            near = limit is not None and trial.limit_bytes / NEAR_LIMIT <= limit <= trial.limit_bytes * NEAR_LIMIT
            return trial if near else None
        # Whether it is free just now is the affair of whoever places it.
        whole = plan.spec.memory_limit or machine.total_bytes
        return trial if whole is None or trial.total_bytes <= whole * FITS_SHARE else None

    async def _tried(self, plan: RunPlan, shape_key: str, data_key: str, amount: Amount) -> None:
        """Once, however many wait for it."""
        key = (shape_key, data_key)
        task = self._under_way.get(key)
        if task is None:
            work = self._try_in_turn(plan, shape_key, data_key, amount)
            task = self._under_way[key] = asyncio.create_task(work, name="estimate")

            def over(task: asyncio.Task[None]) -> None:
                del self._under_way[key]
                if not task.cancelled():
                    task.exception()  # Nobody may wait for it any more.

            task.add_done_callback(over)
        await asyncio.shield(task)

    async def _try_in_turn(self, plan: RunPlan, shape_key: str, data_key: str, amount: Amount) -> None:
        async with self._slot:
            if await self._known(plan, shape_key) is not None:
                return  # Other data of this shape was tried meanwhile.
            folder = RunFolder(self._folder / "trial")
            await asyncio.to_thread(shutil.rmtree, folder.path, ignore_errors=True)
            try:
                trial, rows = await self._try(plan, folder)
            finally:
                await asyncio.to_thread(shutil.rmtree, folder.path, ignore_errors=True)
            if rows is not None:
                # Only the count: how full rows are is always as a look at the data finds it, so that keys agree.
                await asyncio.to_thread(self._keep, data_key, replace(amount, rows=rows, exact=True))
            await asyncio.to_thread(self._keep, shape_key, trial)

    async def _try(self, plan: RunPlan, folder: RunFolder) -> tuple[Trial, int | None]:
        """And the rows of the run; None where it does not fit, because the data is not read then."""
        ready: list[DataReady] = []

        def hear(event: TrainingEvent) -> None:
            if isinstance(event, DataReady):
                ready.append(event)

        was_busy = self._is_busy()
        launch = Launch(folder=folder, plan=plan, mode="estimate", memory_limit_bytes=plan.spec.memory_limit)
        try:
            async with asyncio.timeout(TRIAL_S):
                ending = await Trainer(launch, hear, self._supervise()).run()
        except TimeoutError:
            raise JobRefused(f"trying it on this node did not end within {TRIAL_S:.0f} s") from None
        if ending.how != "done":
            raise _refusal(ending)
        told = json.loads(await asyncio.to_thread(folder.estimate.read_text, "utf-8"))
        trial = _trial_of(told, plan.spec, was_busy=was_busy or self._is_busy())
        return trial, ready[-1].rows if ready else None

    def _priced(self, plan: RunPlan, trial: Trial, amount: Amount, fresh: bool) -> Estimate:
        hardware, spec = self._hardware(), plan.spec
        price = price_of(self._declared, [gpu.name for gpu in hardware.gpus], hardware.cpu_model)
        steps = steps_of(spec, amount.rows)
        seconds = _seconds(spec, trial, steps)
        low, high = seconds * (1 - trial.spread) * (BUSY_LOW if trial.was_busy else 1), seconds * (1 + trial.spread)
        cost = cost_of(price, seconds, low, high)
        estimate = Estimate(
            node=self._node,
            memory_bytes=trial.total_bytes,
            memory_bytes_low=round(trial.total_bytes * MEMORY_LOW),
            memory_bytes_high=round(trial.total_bytes * MEMORY_HIGH),
            seconds=seconds,
            seconds_low=low,
            seconds_high=high,
            device=_device(hardware),
            usd_per_second=None if price is None else price.usd_per_second,
            steps=steps,
            effective_batch=spec.effective_batch,
            basis=_basis(trial, None if price is None else price.basis, fresh=fresh),
        )
        if cost is None:
            return estimate
        return replace(estimate, usd=cost.usd, usd_low=cost.usd_low, usd_high=cost.usd_high)

    def _kept(self, kind: type[T], key: str) -> T | None:
        """What an earlier estimate left. Damaged or too old is none."""
        try:
            told = json.loads((self._folder / kind.__name__.lower() / f"{key}.json").read_text("utf-8"))
            found = kind(**told)
            return found if 0 <= time.time() - found.at < MAX_AGE_S else None
        except (OSError, ValueError, TypeError):
            return None

    def _keep(self, key: str, found: _Kept) -> None:
        folder = self._folder / type(found).__name__.lower()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            staged = folder / f".{key}"
            staged.write_text(json.dumps(asdict(found)), "utf-8")
            staged.replace(folder / f"{key}.json")
            newest_last = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
            for old in newest_last[:-KEPT]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("an estimate could not be kept: %s", error)


def steps_of(spec: TrainingSpec, rows: int) -> int:
    """Of a whole run on so many rows."""
    wanted = math.ceil(spec.num_epochs * rows / spec.effective_batch)
    return wanted if spec.max_steps is None else min(wanted, spec.max_steps)


def _trial_of(told: Mapping[str, Any], spec: TrainingSpec, *, was_busy: bool) -> Trial:
    """From `estimate.json`."""
    fits = bool(told["fits"]) and told.get("step_s") is not None
    seconds, steps, step_s = told.get("seconds") or 0.0, told.get("steps") or 0, told.get("step_s") or 0.0
    evaluating_s, saving_s = told.get("evaluation_s") or 0.0, told.get("saving_s") or 0.0
    return Trial(
        at=time.time(),
        total_bytes=told["total_bytes"],
        limit_bytes=told["limit_bytes"],
        micro_batch_size=told["micro_batch_size"],
        checkpointing=told["checkpointing"],
        fits=fits,
        steps=steps,
        step_s=step_s,
        spread=(told["seconds_high"] / seconds - 1) if seconds else 0.0,
        once_s=max(0.0, seconds - step_s * steps - evaluating_s - saving_s),
        evaluating_s=evaluating_s,
        saving_s=saving_s,
        is_smaller=told["micro_batch_size"] < spec.micro_batch_size
        or told["checkpointing"] != (spec.checkpointing is True),
        was_busy=was_busy,
    )


def _seconds(spec: TrainingSpec, trial: Trial, steps: int) -> float:
    """Of a run of `steps`, of a shape that was tried for a run of other length."""
    evaluating = trial.evaluating_s * _more_often(spec.eval_interval, steps, trial.steps)
    saving = trial.saving_s * _more_often(spec.save_interval, steps, trial.steps)
    return trial.once_s + trial.step_s * steps + evaluating + saving


def _more_often(interval: int | None, steps: int, tried: int) -> float:
    """By which factor something is done more often, at intervals and at the end."""
    return 1.0 if interval is None else (steps // interval + 1) / (tried // interval + 1)


def _looked_at(plan: RunPlan) -> Amount:
    """The data without a trial. Blocks for a second or more."""
    spec = plan.spec
    if spec.data.format not in READER_FORMATS:
        return Amount(at=time.time(), rows=1, exact=False, row_tokens=spec.seq_len)  # Only the run can read it.
    try:
        told = inspect_data(Path(plan.data_path), tokenizer=Path(plan.model_path), spec=spec.model_dump(mode="json"))
    except BadData as error:
        raise DataUnusable(f"data: {error}", param="data") from error
    except EnvironmentUnfit as error:
        raise JobRefused(f"this node can't train: {error}") from error
    rows = max(1, round(told["rows"] * (1 - spec.held_out_fraction)))
    return Amount(at=time.time(), rows=rows, exact=False, row_tokens=told["fill"] * spec.seq_len)


def _data_key(plan: RunPlan) -> str:
    """Of what decides how many rows there are."""
    spec = plan.spec
    told = spec.model_dump(mode="json", include={"task", "seq_len", "packing", "eval_fraction", "seed", "data"})
    return _key(told, plan.data_digest, plan.eval_digest, plan.model_digest)


def _shape_key(plan: RunPlan, amount: Amount) -> str:
    """Of what decides the memory and the time of a step."""
    full = round(STEPS_AN_OCTAVE * math.log2(max(1.0, amount.row_tokens)))
    shape = plan.spec.model_dump(mode="json", exclude=set(FREE))
    extra = (plan.eval_path is not None, plan.canary)
    return _key(shape, plan.model_digest, full, extra, default_threads(), [_version(name) for name in LIBRARIES])


def _key(*told: object) -> str:
    return hashlib.sha256(json.dumps([VERSION, *told], sort_keys=True).encode()).hexdigest()[:32]


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _refusal(ending: Ending) -> JobRefused | InvalidSpec | DataUnusable:
    """What a trial's failure means for whoever wanted it."""
    match ending.last:
        case Failed(kind="bad_data"):
            return DataUnusable(ending.reason, param="data")
        case Failed(kind="bad_spec"):
            return InvalidSpec(ending.reason)
    return JobRefused(f"it can't be tried on this node: {ending.reason}")


def _basis(trial: Trial, price: str | None, *, fresh: bool) -> str:
    when = "tried on this node just now" if fresh else f"an equal run was tried on this node {_ago(trial.at)}"
    busy = ", while it trained something else" if trial.was_busy else ""
    small = f", with {_rows(trial.micro_batch_size)} at once" if trial.is_smaller else ""
    known = {
        "declared": "its price is declared",
        "energy": "its price is that of its power",
        "cloud": "its price is that of a rented device",
        None: "its price is unknown",
    }
    return f"{when}{small}{busy}; {known[price]}"


def _ago(at: float) -> str:
    minutes = max(0.0, time.time() - at) / 60
    return f"{minutes:.0f} min ago" if minutes < 90 else f"{minutes / 60:.0f} h ago"


def _device(hardware: Hardware) -> str:
    return hardware.gpus[0].name if hardware.gpus else hardware.cpu_model or "cpu"


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
