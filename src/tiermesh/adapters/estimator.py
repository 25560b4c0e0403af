"""What a job would take on this node: from a short trial of its real run, or from what an equal one came to.

Theory of operation. A trial (`kernel.training --estimate`) loads the model, reckons the memory and tries some steps:
seconds to half a minute. What it finds holds for every run of that shape (`trials`), so it is kept, and only the number
of steps is reckoned anew for other data. Of data it is kept how many rows it makes: the trial tells it, else the data
is looked at, which costs about a second.

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
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tiermesh.adapters.data_inspector import inspect_data
from tiermesh.adapters.trainer import Ending, Launch, OnRecord, Trainer
from tiermesh.adapters.trials import Amount, Trial, Trials, data_key, shape_key, steps_of, trial_of
from tiermesh.core.admission import GIB, Machine
from tiermesh.core.jobs import Estimate
from tiermesh.core.price import Basis, Declared, cost_of, price_of
from tiermesh.errors import BadData, DataUnusable, EnvironmentUnfit, InvalidSpec, JobRefused, TooLarge
from tiermesh.protocol.run_folder import RunFolder, RunPlan
from tiermesh.protocol.training_events import DataReady, Failed, TrainingEvent
from tiermesh.protocol.training_plugins import READER_FORMATS
from tiermesh.types import Hardware, NodeId

TRIAL_S = 600.0
"""Loading a large model from a slow disk, then half a minute. Longer, and something hangs."""
MEMORY_LOW, MEMORY_HIGH = 0.8, 1.05
"""Of the reckoned memory, which errs on the careful side."""
BUSY_LOW = 0.5
"""Of a time that was measured while this node trained: alone it has all the cores."""


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
        self._trials = Trials(folder / "kept")
        self._node = node
        self._declared = declared
        self._hardware = hardware
        self._memory = memory
        self._is_busy = is_busy
        self._supervise = supervise
        self._slot = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._under_way: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def estimate(self, plan: RunPlan) -> Estimate:
        """Of a run of `plan`, on this node, with its price. May wait for other trials, and takes up to half a minute
        more itself, unless an equal one was tried before; whoever stops waiting stops no trial.

        Raises `TooLarge` where it will never fit and `JobRefused` where it does not fit now or can't be tried here,
        `InvalidSpec` and `DataUnusable` where it would fail anywhere.
        """
        data = data_key(plan)
        amount = await self._amount(plan, data)
        shape = shape_key(plan, amount)
        trial = await self._known(plan, shape)
        fresh = trial is None
        if trial is None:
            await self._tried(plan, shape, data, amount)
            trial = await asyncio.to_thread(self._trials.find, Trial, shape)
            amount = await self._amount(plan, data)
        if trial is None:
            raise JobRefused("what was tried on this node could not be kept; is its disk full?")
        if not trial.fits:
            raise _too_large(trial, plan.spec.memory_limit, self._memory().total_bytes)
        return await asyncio.to_thread(self._priced, plan, trial, amount, fresh)

    async def close(self) -> None:
        """End what is being tried. May be called more than once."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _amount(self, plan: RunPlan, key: str) -> Amount:
        async with self._looking:  # Once, however many come with it at once.
            amount = await asyncio.to_thread(self._trials.find, Amount, key)
            if amount is None:
                amount = await asyncio.to_thread(_looked_at, plan)
                await asyncio.to_thread(self._trials.keep, key, amount)
            return amount

    async def _known(self, plan: RunPlan, key: str) -> Trial | None:
        """From the disk, as far as it holds now."""
        trial = await asyncio.to_thread(self._trials.find, Trial, key)
        if trial is None or (trial.was_busy and not self._is_busy()):
            return None
        return trial if trial.holds(plan.spec, self._memory()) else None

    async def _tried(self, plan: RunPlan, shape: str, data: str, amount: Amount) -> None:
        """Once, however many wait for it."""
        key = (shape, data)
        task = self._under_way.get(key)
        if task is None:
            work = self._try_in_turn(plan, shape, data, amount)
            task = self._under_way[key] = asyncio.create_task(work, name="estimate")

            def over(task: asyncio.Task[None]) -> None:
                del self._under_way[key]
                if not task.cancelled():
                    task.exception()  # Nobody may wait for it any more.

            task.add_done_callback(over)
        await asyncio.shield(task)

    async def _try_in_turn(self, plan: RunPlan, shape: str, data: str, amount: Amount) -> None:
        async with self._slot:
            if await self._known(plan, shape) is not None:
                return  # Other data of this shape was tried meanwhile.
            folder = RunFolder(self._folder / "run")
            await asyncio.to_thread(shutil.rmtree, folder.path, ignore_errors=True)
            try:
                trial, rows = await self._try(plan, folder)
            finally:
                await asyncio.to_thread(shutil.rmtree, folder.path, ignore_errors=True)
            if rows is not None:
                # Only the count: how full rows are is always as a look at the data finds it, so that keys agree.
                await asyncio.to_thread(self._trials.keep, data, replace(amount, rows=rows, exact=True))
            await asyncio.to_thread(self._trials.keep, shape, trial)

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
        trial = trial_of(told, plan.spec, was_busy=was_busy or self._is_busy())
        return trial, ready[-1].rows if ready else None

    def _priced(self, plan: RunPlan, trial: Trial, amount: Amount, fresh: bool) -> Estimate:
        hardware, steps = self._hardware(), steps_of(plan.spec, amount.rows)
        price = price_of(self._declared, [gpu.name for gpu in hardware.gpus], hardware.cpu_model)
        seconds = trial.seconds(plan.spec, steps)
        low, high = seconds * (1 - trial.spread) * (BUSY_LOW if trial.was_busy else 1), seconds * (1 + trial.spread)
        cost = cost_of(price, seconds, low, high)
        return Estimate(
            node=self._node,
            memory_bytes=trial.total_bytes,
            memory_bytes_low=round(trial.total_bytes * MEMORY_LOW),
            memory_bytes_high=round(trial.total_bytes * MEMORY_HIGH),
            seconds=seconds,
            seconds_low=low,
            seconds_high=high,
            usd=None if cost is None else cost.usd,
            usd_low=None if cost is None else cost.usd_low,
            usd_high=None if cost is None else cost.usd_high,
            device=hardware.gpus[0].name if hardware.gpus else hardware.cpu_model or "cpu",
            usd_per_second=None if price is None else price.usd_per_second,
            steps=steps,
            effective_batch=plan.spec.effective_batch,
            basis=_basis(trial, None if price is None else price.basis, fresh=fresh),
        )


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


def _refusal(ending: Ending) -> JobRefused | InvalidSpec | DataUnusable:
    """What a trial's failure means for whoever wanted it."""
    match ending.last:
        case Failed(kind="bad_data"):
            return DataUnusable(ending.reason, param="data")
        case Failed(kind="bad_spec"):
            return InvalidSpec(ending.reason)
    return JobRefused(f"it can't be tried on this node: {ending.reason}")


def _too_large(trial: Trial, limit_bytes: int | None, has_bytes: int | None) -> InvalidSpec | JobRefused:
    """What it means that a trial did not fit, as small as it can be made."""
    needs = f"it needs about {_gib(trial.total_bytes)} with {_rows(trial.micro_batch_size)} at once"
    if limit_bytes is not None:
        return InvalidSpec(f"memory_limit: {needs}, and memory_limit is {_gib(limit_bytes)}", param="memory_limit")
    if has_bytes is not None and trial.total_bytes > has_bytes:
        message = f"{needs}, and this node has {_gib(has_bytes)}"
        return TooLarge(message, needs_bytes=trial.total_bytes, has_bytes=has_bytes)
    return JobRefused(f"{needs}, and {_gib(trial.limit_bytes)} were free on this node")


def _basis(trial: Trial, price: Basis | None, *, fresh: bool) -> str:
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


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
