"""What a job will take on this node, for whoever decides where it goes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tiermesh.core.jobs import Dataset, Estimate
from tiermesh.daemon.groundwork import Groundwork, without_paths
from tiermesh.errors import BadData, DataUnusable, JobRefused, StateUnwritable, TrainingFailure
from tiermesh.protocol.job_orders import WorkAsked
from tiermesh.protocol.run_folder import RunFolder, RunPlan
from tiermesh.types import NodeId

if TYPE_CHECKING:
    from tiermesh.adapters.estimator import Estimator
    from tiermesh.daemon.copies import Copies

KEPT = 256
"""Answers: jobs that differ in nothing that matters get the same one."""


@dataclass(slots=True)
class _Answer:
    """To one question, once there is one. `was_busy`: this node trained when it was asked or when it was answered."""

    task: asyncio.Task[Estimate]
    was_busy: bool


class Appraisal:
    """One for a node. `is_busy`: does it train now?"""

    def __init__(
        self,
        *,
        folder: Path,
        copies: Copies,
        groundwork: Groundwork,
        estimator: Estimator,
        is_busy: Callable[[], bool],
    ) -> None:
        self._folder = folder
        self._copies = copies
        self._groundwork = groundwork
        self._estimator = estimator
        self._is_busy = is_busy
        self._kept: dict[str, _Answer] = {}

    async def estimate(self, asked: WorkAsked) -> Estimate:
        """Raises `JobRefused` for what this node can't train, `SlotTaken` for what it can't begin now and should,
        `InvalidSpec` and `DataUnusable` for what none can, and `Unavailable`. Equal questions are one."""
        await asyncio.to_thread(self._groundwork.check_free, asked)
        key = _key(asked)
        answer = self._kept.get(key)
        if answer is None or not self._holds(answer):
            task = asyncio.create_task(self._appraise(key, asked), name=f"estimate {asked.job}")
            answer = self._kept[key] = _Answer(task, self._is_busy())
            for old in list(self._kept)[:-KEPT]:
                del self._kept[old]
        return await asyncio.shield(answer.task)

    async def close(self) -> None:
        """Break off what is under way."""
        tasks = [answer.task for answer in self._kept.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _holds(self, answer: _Answer) -> bool:
        """Would it be the same now? What was tried while this node trained took longer than it will."""
        if not answer.task.done():
            return True
        if answer.task.cancelled() or answer.task.exception() is not None:
            return False
        return self._is_busy() or not answer.was_busy

    async def _appraise(self, key: str, asked: WorkAsked) -> Estimate:
        for data in filter(None, (asked.data, asked.eval_data)):
            holders = [NodeId(each) for each in data.holders]
            await self._copies.bring(asked.job, Dataset(data.sha256, data.name, data.size_bytes), holders)
        run = RunFolder(self._folder / f"estimate-{key[:16]}")
        try:
            plan = await asyncio.to_thread(self._checked, asked, run)
            found = await self._estimator.estimate(plan)
            if key in self._kept:
                self._kept[key].was_busy |= self._is_busy()
            return found
        except BadData as error:
            raise DataUnusable(without_paths(run, str(error)), param="data") from error
        except TrainingFailure as error:
            raise JobRefused(f"this node can't train it: {error}") from error
        except OSError as error:
            raise StateUnwritable(f"this node can't try it: {error.strerror or error}") from error
        finally:
            await asyncio.to_thread(shutil.rmtree, run.path, ignore_errors=True)

    def _checked(self, asked: WorkAsked, run: RunFolder) -> RunPlan:
        """Blocks."""
        plan = self._groundwork.plan(asked, run)
        self._groundwork.check_size(plan)
        return plan


def _key(asked: WorkAsked) -> str:
    """Of all that an estimate can depend on."""
    data = [None if each is None else (each.sha256, each.name) for each in (asked.data, asked.eval_data)]
    return hashlib.sha256(json.dumps([asked.spec, data, asked.canary], sort_keys=True).encode()).hexdigest()
