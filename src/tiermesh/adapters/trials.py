"""What trials of runs came to on this node, kept on disk: for each shape of a run, and for each amount of data.

The shape of a run is what its memory and the time of a step depend on: the model, how full its rows are, and all of the
spec but `FREE` fields. Damaged or old files are none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from tiermesh.adapters.trainer import default_threads
from tiermesh.core.admission import Machine
from tiermesh.protocol.run_folder import RunPlan
from tiermesh.protocol.training import TrainingSpec

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
FITS_SHARE = 0.92
"""Of a limit; above it a run begins to make itself smaller (`core.relief`)."""
NEAR_LIMIT = 1.25
"""A trial that had to make itself smaller counts for limits that differ by no more."""

T = TypeVar("T", bound="Kept")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A file. `at`: Unix seconds."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial(Kept):
    """What a shape came to. Seconds; `evaluating_s` and `saving_s` are of a run of `steps`, `once_s` is what any run of
    this shape takes besides its steps: loading, the first slow step, the canary."""

    total_bytes: int
    limit_bytes: int
    micro_batch_size: int
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

    def holds(self, spec: TrainingSpec, machine: Machine) -> bool:
        """Would a trial on this machine find the same? Whether that memory is free just now is the affair of whoever
        places the run."""
        if self.fits and not self.is_smaller:
            whole = spec.memory_limit or machine.total_bytes
            return whole is None or self.total_bytes <= whole * FITS_SHARE
        limit = spec.memory_limit or machine.free_bytes
        return limit is not None and self.limit_bytes / NEAR_LIMIT <= limit <= self.limit_bytes * NEAR_LIMIT

    def seconds(self, spec: TrainingSpec, steps: int) -> float:
        """Of a run of `steps`, of this shape."""
        evaluating = self.evaluating_s * _more_often(spec.eval_interval, steps, self.steps)
        saving = self.saving_s * _more_often(spec.save_interval, steps, self.steps)
        return self.once_s + self.step_s * steps + evaluating + saving


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount(Kept):
    """What data is, as a spec reads it: rows to train on, and the tokens in each on average. `exact`: a run counted
    them; to look at the data gives them but for those that are held out or repeated."""

    rows: int
    exact: bool
    row_tokens: float


class Trials:
    """The files. Everything blocks, for about a millisecond."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, kind: type[T], key: str) -> T | None:
        """What an earlier estimate left."""
        try:
            found = kind(**json.loads((self._folder / kind.__name__.lower() / f"{key}.json").read_text("utf-8")))
            return found if 0 <= time.time() - found.at < MAX_AGE_S else None
        except (OSError, ValueError, TypeError):
            return None

    def keep(self, key: str, found: Kept) -> None:
        """Whole or not at all; without it there is only more to do the next time."""
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


def trial_of(told: Mapping[str, Any], spec: TrainingSpec, *, was_busy: bool) -> Trial:
    """From `estimate.json`."""
    seconds, steps, step_s = told.get("seconds") or 0.0, told.get("steps") or 0, told.get("step_s") or 0.0
    evaluating_s, saving_s = told.get("evaluation_s") or 0.0, told.get("saving_s") or 0.0
    unasked_checkpointing = told["checkpointing"] and spec.checkpointing is not True
    return Trial(
        at=time.time(),
        total_bytes=told["total_bytes"],
        limit_bytes=told["limit_bytes"],
        micro_batch_size=told["micro_batch_size"],
        fits=bool(told["fits"]) and told.get("step_s") is not None,
        steps=steps,
        step_s=step_s,
        spread=(told["seconds_high"] / seconds - 1) if seconds else 0.0,
        once_s=max(0.0, seconds - step_s * steps - evaluating_s - saving_s),
        evaluating_s=evaluating_s,
        saving_s=saving_s,
        is_smaller=told["micro_batch_size"] < spec.micro_batch_size or unasked_checkpointing,
        was_busy=was_busy,
    )


def steps_of(spec: TrainingSpec, rows: int) -> int:
    """Of a whole run on so many rows."""
    wanted = math.ceil(spec.num_epochs * rows / spec.effective_batch)
    return wanted if spec.max_steps is None else min(wanted, spec.max_steps)


def data_key(plan: RunPlan) -> str:
    """Of what decides how many rows there are."""
    spec = plan.spec
    told = spec.model_dump(mode="json", include={"task", "seq_len", "packing", "eval_fraction", "seed", "data"})
    return _key(told, plan.data_digest, plan.eval_digest, plan.model_digest)


def shape_key(plan: RunPlan, amount: Amount) -> str:
    """Of what decides the memory and the time of a step."""
    full = round(STEPS_AN_OCTAVE * math.log2(max(1.0, amount.row_tokens)))
    shape = plan.spec.model_dump(mode="json", exclude=set(FREE))
    extra = (plan.eval_path is not None, plan.canary)
    return _key(shape, plan.model_digest, full, extra, default_threads(), [_version(name) for name in LIBRARIES])


def _more_often(interval: int | None, steps: int, tried: int) -> float:
    """By which factor something is done more often, at intervals and at the end."""
    return 1.0 if interval is None else (steps // interval + 1) / (tried // interval + 1)


def _key(*told: object) -> str:
    return hashlib.sha256(json.dumps([VERSION, *told], sort_keys=True).encode()).hexdigest()[:32]


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
