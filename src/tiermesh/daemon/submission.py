"""From a request to a job: what can be judged at once is judged here, by the node that was asked."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable

from tiermesh.adapters.blobs import Blobs, safe_name
from tiermesh.adapters.catalogue import CATALOGUE
from tiermesh.config import PolicyDocument
from tiermesh.core.jobs import Asked, Dataset, Happened, Job, JobId
from tiermesh.daemon.data_looks import DataLooks
from tiermesh.daemon.groundwork import is_public
from tiermesh.errors import DataUnusable, InvalidSpec, NameTaken
from tiermesh.protocol.jobs import GivenData, TrainRequest
from tiermesh.protocol.training_problems import read_spec
from tiermesh.protocol.ulid import CHANCE_BYTES, make_ulid
from tiermesh.types import NodeId, View


class Submissions:
    """One for a node. `models` are the names that this node serves; `policy` is what holds now.

    `taken` tells why no job may have a name, because its result is to be served by it; None when one may.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        blobs: Blobs,
        looks: DataLooks,
        models: Iterable[str],
        view: Callable[[], View],
        policy: Callable[[], PolicyDocument],
        taken: Callable[[str], str | None],
    ) -> None:
        self._me = me
        self._blobs = blobs
        self._looks = looks
        self._models = frozenset(models)
        self._view = view
        self._policy = policy
        self._taken = taken

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
        seen = await self._looks.look(spec, data, held_out)
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
        happened = (Happened(now, "data", seen),) if seen else ()
        return Job(id=JobId(made), asked=asked, happened=happened, holders=(self._me,))

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
