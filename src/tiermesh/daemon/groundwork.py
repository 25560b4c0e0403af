"""What must be there before a job can run on this node: its data, its model, the memory. Everything blocks, so it is
called in threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tiermesh.adapters.blobs import Blobs
from tiermesh.adapters.catalogue import CATALOGUE
from tiermesh.adapters.model_source import can_pull
from tiermesh.adapters.run_plan import check_libraries, plan_of, trainable_model
from tiermesh.core.admission import Judgement, Machine, judge_free, judge_memory, least_bytes
from tiermesh.errors import DataUnusable, EnvironmentUnfit, InvalidSpec, JobRefused, SlotTaken, TooLarge
from tiermesh.protocol.job_orders import WorkAsked
from tiermesh.protocol.jobs import DataRef
from tiermesh.protocol.run_folder import RunFolder, RunPlan
from tiermesh.protocol.training_problems import read_spec


class Groundwork:
    """One for a node. `models` are those that it was started with, by the names that it serves them under."""

    def __init__(self, blobs: Blobs, models: Mapping[str, str], memory: Callable[[], Machine]) -> None:
        self._blobs = blobs
        self._models = models
        self.memory = memory

    def plan(self, asked: WorkAsked, run: RunFolder) -> RunPlan:
        """What is asked for, found on this machine; the data is linked into the run's folder.

        Raises `EnvironmentUnfit`, `InvalidSpec`, `DataUnusable`, and `JobRefused` for a model that is not to be had.
        """
        check_libraries()
        spec = read_spec(asked.spec)
        source = self.model_source(spec.model_name)
        data = self._data(asked.data, run, "data")
        held_out = None if asked.eval_data is None else self._data(asked.eval_data, run, "eval_data")
        placed = {"dataset_path": str(data), "eval_path": None if held_out is None else str(held_out)}
        try:
            plan = plan_of(spec.model_copy(update=placed | {"model_name": source}))
        except InvalidSpec as error:
            raise InvalidSpec(without_paths(run, str(error)), param=error.param) from None
        return plan.model_copy(update={"spec": spec.model_copy(update=placed), "canary": asked.canary})

    def admit(self, asked: WorkAsked, run: RunFolder) -> RunPlan:
        """The plan of what may begin now. Raises as `plan`, and `SlotTaken` for want of memory just now."""
        try:
            plan = self.plan(asked, run)
        except EnvironmentUnfit as error:
            raise JobRefused(f"this node can't train: {error}") from error
        match (judgement := self.judge(plan)).verdict:
            case "fits":
                self.check_free(asked)
                return plan
            case "wait":
                raise SlotTaken(f"it {judgement.reason}")
            case "never":
                raise JobRefused(f"it {judgement.reason}")

    def check_free(self, asked: WorkAsked) -> None:
        """Raises `SlotTaken` where that much is not free just now."""
        if asked.needs_bytes is None:
            return
        if (judgement := judge_free(asked.needs_bytes, self.memory())).verdict != "fits":
            raise SlotTaken(f"it {judgement.reason}")

    def judge(self, plan: RunPlan) -> Judgement:
        """Would it fit in memory, at the very least?"""
        needed = least_bytes(trainable_model(plan.model_path).parameters, plan.spec.method)
        return judge_memory(needed, self.memory(), plan.spec.memory_limit)

    def check_size(self, plan: RunPlan) -> None:
        """Raises `InvalidSpec` where the job's own limit is too low for it, and `TooLarge` where this machine is too
        small."""
        needed = least_bytes(trainable_model(plan.model_path).parameters, plan.spec.method)
        if (judgement := judge_memory(needed, Machine(None, None), plan.spec.memory_limit)).verdict == "never":
            raise InvalidSpec(f"memory_limit: it {judgement.reason}", param="memory_limit")
        total = self.memory().total_bytes
        if total is not None and (judgement := judge_memory(needed, Machine(total, None), None)).verdict == "never":
            refusal = f"it can't be trained on this node: it {judgement.reason}"
            raise TooLarge(refusal, needs_bytes=needed, has_bytes=total)

    def model_source(self, name: str) -> str:
        """A name that this node or the world knows; never a path, which would be one on somebody else's machine.

        Raises `JobRefused`.
        """
        if (own := self._models.get(name)) is not None:
            return own
        if is_public(name):
            return name
        known = ", ".join(sorted({*self._models, *CATALOGUE}))
        raise JobRefused(f"model_name is {name!r}, which is no name of a model here; there are {known}")

    def _data(self, ref: DataRef, run: RunFolder, field: str) -> Path:
        path = self._blobs.link(ref.sha256, ref.name, run.path / f"input-{field}")
        if path is None:
            raise DataUnusable(
                f"{field}: this node has no data {ref.sha256[:12]}…; send it first with PUT /api/data/{ref.sha256}",
                param=f"{field}.sha256",
            )
        return path


def is_public(name: str) -> bool:
    """Can any node fetch the model of this name from the internet?"""
    return name in CATALOGUE or (can_pull(name) and not name.startswith((".", "~", "/")) and not Path(name).exists())


def without_paths(run: RunFolder, text: str) -> str:
    """Names of data instead of this machine's paths."""
    return text.replace(f"{run.path}/input-data/", "").replace(f"{run.path}/input-eval_data/", "")
