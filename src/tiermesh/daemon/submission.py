"""From a request to a job: what can be judged at once is judged here, by the node that was asked."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from tiermesh.adapters.blobs import Blobs, safe_name
from tiermesh.adapters.catalogue import CATALOGUE
from tiermesh.adapters.run_plan import data_problems
from tiermesh.config import PolicyDocument
from tiermesh.core.jobs import Asked, Dataset, Job, JobId
from tiermesh.daemon.groundwork import is_public
from tiermesh.errors import DataUnusable, EnvironmentUnfit, InvalidSpec, NameTaken
from tiermesh.protocol.jobs import GivenData, TrainRequest
from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_problems import read_spec
from tiermesh.protocol.ulid import CHANCE_BYTES, make_ulid
from tiermesh.types import NodeId, View

OF_DATA = {"task", "data"}
"""Fields of a spec that decide which records can be used: a sweep over seeds and rates is one look."""
LOOKS_KEPT = 256
"""Data that was looked at with these options is not looked at again: two hundred equal submissions cost one look."""


class Submissions:
    """One for a node. `models` are the names that this node serves; `policy` is what holds now.

    `taken` tells why no job may have a name, because its result is to be served by it; None when one may.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        blobs: Blobs,
        folder: Path,
        models: Iterable[str],
        view: Callable[[], View],
        policy: Callable[[], PolicyDocument],
        taken: Callable[[str], str | None],
    ) -> None:
        self._me = me
        self._blobs = blobs
        self._folder = folder
        self._models = frozenset(models)
        self._view = view
        self._policy = policy
        self._taken = taken
        self._looks: dict[str, asyncio.Task[str]] = {}

    async def job(self, request: TrainRequest, submitter: str) -> Job:
        """What is asked for, checked. Its data is on this node. Raises `InvalidSpec`, `DataUnusable`, `NameTaken`."""
        if request.eval_data is None and request.spec.get("eval_path") is not None:
            raise InvalidSpec(
                "eval_path is given, but the data did not come with it: send eval_data", param="eval_path"
            )
        if request.name is not None and (why := self._taken(request.name)) is not None:
            raise NameTaken(f"name: {why}, and the result would be served by that name; choose another", param="name")
        data = await self._given(request.data, "data")
        held_out = None if request.eval_data is None else await self._given(request.eval_data, "eval_data")
        names = {"dataset_path": data.name} | ({} if held_out is None else {"eval_path": held_out.name})
        spec = read_spec(request.spec | names)
        if spec.wandb is not None:
            raise InvalidSpec(
                "wandb: a job's curves would go to the account of whoever owns the node; use tensorboard, or --local",
                param="wandb",
            )
        self._check_model(spec.model_name)
        await self._look(spec, data, held_out)
        now = time.time()
        gates = self._policy().evaluation.gates(request.gates.said())
        asked = Asked(
            name=request.name or time.strftime("job_%Y%m%d_%H%M%S", time.localtime(now)),
            spec=spec.model_dump(mode="json"),
            data=data,
            eval_data=held_out,
            priority=request.priority,
            submitter=submitter,
            open_data=request.open_data,
            gates=gates,
            approve=request.approve,
            max_usd=request.max_usd,
            submitted_at=now,
        )
        made = request.id or make_ulid(int(now * 1000), secrets.token_bytes(CHANCE_BYTES))
        return Job(id=JobId(made), asked=asked, holders=(self._me,))

    async def _given(self, given: GivenData, field: str) -> Dataset:
        """Data that came within the request goes where it would have been uploaded to."""
        name = safe_name(given.name)
        if given.text is not None:
            sha256 = await self._blobs.put_whole(given.text.encode())
        else:
            assert given.sha256 is not None, "checked with the request"
            sha256 = given.sha256
        path = self._blobs.find(sha256)
        if path is None:
            raise DataUnusable(
                f"{field}: this node has no data {sha256[:12]}…; send it first with PUT /api/data/{sha256}",
                param=f"{field}.sha256",
            )
        return Dataset(sha256, name, path.stat().st_size)

    def _check_model(self, name: str) -> None:
        """A name that somebody here knows, or the world; a path would be one on somebody else's machine."""
        members = self._view().members.values()
        served = {model.name for member in members for model in member.status.models}
        if name in self._models or name in served or is_public(name):
            return
        known = ", ".join(sorted({*self._models, *served, *CATALOGUE}))
        raise InvalidSpec(
            f"model_name is {name!r}, which is no name of a model here; there are {known}, and ORG/NAME on the Hugging "
            "Face hub. A folder is trained where it is, with --local, or by the node that serves it (--model FOLDER)",
            param="model_name",
        )

    async def _look(self, spec: TrainingSpec, data: Dataset, held_out: Dataset | None) -> None:
        """At all of the data, once. Raises `DataUnusable`."""
        options = spec.model_dump(mode="json", include=OF_DATA)
        told = json.dumps([options, asdict(data), held_out and asdict(held_out)], sort_keys=True)
        key = hashlib.sha256(told.encode()).hexdigest()
        look = self._looks.get(key)
        if look is None or (look.done() and (look.cancelled() or look.exception() is not None)):
            look = asyncio.create_task(
                asyncio.to_thread(self._problems, key, spec, data, held_out), name="look at data"
            )
            self._looks[key] = look
            for old in list(self._looks)[:-LOOKS_KEPT]:
                del self._looks[old]
        if problems := await asyncio.shield(look):
            raise DataUnusable(problems, param="data")

    def _problems(self, key: str, spec: TrainingSpec, data: Dataset, held_out: Dataset | None) -> str:
        """What is wrong with it, in a sentence; nothing, where this machine can't look. Blocks."""
        folder = self._folder / f"look-{key[:16]}"
        try:
            paths = {"dataset_path": self._linked(data, folder / "data")}
            if held_out is not None:
                paths["eval_path"] = self._linked(held_out, folder / "eval")
            placed = spec.model_copy(update={name: str(path) for name, path in paths.items()})
            problems, _ = data_problems(placed)
        except EnvironmentUnfit:
            return ""
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        told = "; ".join(map(str, problems))
        return told.replace(f"{folder / 'data'}/", "").replace(f"{folder / 'eval'}/", "")

    def _linked(self, data: Dataset, folder: Path) -> Path:
        if (path := self._blobs.link(data.sha256, data.name, folder)) is None:
            raise DataUnusable(f"this node does not have the data {data.name} any more; send it again", param="data")
        return path
