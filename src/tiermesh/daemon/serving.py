"""The mesh serves what training left: pushed to the nodes that have its base model when a job ends well, copied from a
peer when it is first used elsewhere, listed and removed everywhere at once.

On an open mesh a result stays on the node that trained it, unless its job shares its data: others ask that node.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

from tiermesh.adapters.background import Background
from tiermesh.adapters.catalogue import CATALOGUE
from tiermesh.adapters.engines import Reply
from tiermesh.adapters.engines.served_model import ENGINE_NAME
from tiermesh.adapters.peers import Peers
from tiermesh.core.jobs import Job
from tiermesh.core.offers import AUTO
from tiermesh.daemon.served import Served
from tiermesh.errors import InvalidInput, NameTaken, NotFound, TiermeshError, Unavailable
from tiermesh.protocol.serving import (
    SERVED_PATH,
    RemovalReport,
    Result,
    ServedList,
    ServedResult,
    TrainedList,
    TrainedModel,
)
from tiermesh.protocol.validation import validated
from tiermesh.types import Member, NodeId, View

log = logging.getLogger(__name__)

LIST_PATH = f"{SERVED_PATH}/list"
REMOVE_PATH = f"{SERVED_PATH}/remove"
PIN_PATH = f"{SERVED_PATH}/pin"
FILE_PATH = f"{SERVED_PATH}/file"
SERVED, COMING = "served", "coming"
"""What a node answers that was asked to serve: it does, or still fetches."""
ANSWER_S = 3.0
"""A node that was asked to serve answers within this time; peers wait 5 s."""
AGAIN_S = 1.0
"""How soon it is asked again."""
TOLD_S = 10.0
"""What became of a result that was taken in is told for so long: whoever waits for it asks again within a second."""
PUSH_S = 600.0
"""A whole model takes minutes over a slow network. Whoever has not got it by then gets it at its first use."""
LOOK_AGAIN_S = 60.0
"""How soon a model that could not be copied at its first use is thought of again."""
LOOKED_LIMIT = 256
"""Models that were thought of lately."""
FILE_S = 3600.0
"""One file of a whole model, over a slow network."""


class Serving:
    """One for a node. `on_served` hears, where this node pushes a result, what became of it: job and text.

    `is_open`: has the mesh no token? Then what was trained is shared only where its job said so.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        served: Served,
        view: Callable[[], View],
        peers: Peers,
        aliases: Callable[[], Iterable[str]],
        is_open: bool,
        on_served: Callable[[str, str], None],
    ) -> None:
        self.here = served
        self._me = me
        self._view = view
        self._peers = peers
        self._aliases = aliases
        self._is_open = is_open
        self._on_served = on_served
        self._background = Background()
        self._pushed: set[tuple[str, str]] = set()
        """Jobs and artifacts that are being pushed."""
        self._looked: dict[str, float] = {}
        self._taking: dict[tuple[str, str, str], asyncio.Task[ServedResult]] = {}

    async def close(self) -> None:
        """Push and fetch nothing any more."""
        await self._background.close()
        for taking in self._taking.values():
            taking.cancel()
        await asyncio.gather(*self._taking.values(), return_exceptions=True)
        await self.here.close()

    def serve_job(self, job: Job) -> None:
        """Have the result of a job that ended well served, as `serve` does."""
        attempt = job.result
        if attempt is None or attempt.told is None:
            return
        told = attempt.told
        if not told.artifact:
            self._on_served(job.id, "not served: its node keeps no result")
            return
        self.serve(
            Result(
                name=job.name,
                job=job.id,
                submitted_at=job.submitted_at,
                artifact=told.artifact,
                kind="model" if told.result.get("kind") == "model" else "adapter",
                base=str(attempt.spec.get("model_name", "")),
                base_digest=str(told.result.get("base_digest", "")),
                node=attempt.node,
                holders=[attempt.node, *(node for node in told.holders if node != attempt.node)],
                shared=not self._is_open or job.asked.open_data,
            )
        )

    def serve(self, result: Result) -> None:
        """Have it served wherever its base is; returns at once, and twice is once. Called by whoever leads."""
        if (result.job, result.artifact) not in self._pushed:
            self._pushed.add((result.job, result.artifact))
            self._background.start(self._push(result))

    def taken(self, name: str) -> str | None:
        """Why no job may be called so, for a person; None when one may. What other jobs are called does not matter."""
        if name == AUTO or name.startswith("tier:"):
            return f"{name} means any model"
        if name in self._aliases():
            return f"{name} is an alias"
        if name in CATALOGUE:
            return f"{name} is a model of the catalogue"
        owner = self._owner(name)
        return None if owner is None else f"node {owner} serves a model as {name}"

    def asked_elsewhere(self, name: str, node: NodeId) -> None:
        """A prompt for `name` was answered by `node`: this node may want a copy of its own."""
        models = [model for member in self._members(node) for model in member.status.models if model.name == name]
        now = time.monotonic()
        if not any(model.job for model in models) or now < self._looked.get(name, 0.0):
            return
        if len(self._looked) >= LOOKED_LIMIT:
            self._looked.clear()
        self._looked[name] = now + LOOK_AGAIN_S
        self._background.start(self._copy(name, node))

    async def all(self) -> TrainedList:
        """Over the whole mesh, by name."""
        found, unreachable = await self._everywhere(LIST_PATH, {})
        results = [(node, result) for node, told in found for result in validated(ServedList, told).results]
        names = sorted({result.name for _, result in results})
        models = [_model([(node, result) for node, result in results if result.name == name]) for name in names]
        return TrainedList(models=models, unreachable=unreachable)

    async def find(self, name: str) -> TrainedModel:
        """Raises `NotFound`, or `Unavailable` when a node could not be asked that may have it."""
        told = await self.all()
        for model in told.models:
            if model.name == name:
                return model
        raise _nowhere(name, told.unreachable)

    async def remove(self, name: str) -> RemovalReport:
        """Remove it from every node. Raises as `find`."""
        model = await self.find(name)
        found, unreachable = await self._everywhere(REMOVE_PATH, {"name": model.name})
        return RemovalReport(name=name, nodes=sorted(node for node, told in found if told), unreachable=unreachable)

    async def pin(self, name: str, *, pinned: bool) -> TrainedModel:
        """Keep it on every node that has it whatever else comes, or no longer so. Raises as `find`."""
        await self.find(name)
        await self._everywhere(PIN_PATH, {"name": name, "pinned": pinned})
        return await self.find(name)

    @asynccontextmanager
    async def file(self, name: str, file: str, request_id: str) -> AsyncIterator[Reply]:
        """One of its files, from a peer that has it. Raises `NotFound`, `Unavailable` or `EngineFailed`."""
        found, unreachable = await self._everywhere(LIST_PATH, {}, but=self._me)
        holders = {node for node, told in found if any(one.name == name for one in validated(ServedList, told).results)}
        for node, member in self._up():
            if member.status.name in holders:
                body = {"name": name, "file": file}
                fetched = self._peers.generate(
                    node, member.status.addresses, body, path=FILE_PATH, request_id=request_id, deadline_s=FILE_S
                )
                async with fetched as reply:
                    yield reply
                    return
        raise _nowhere(name, unreachable)

    async def _push(self, result: Result) -> None:
        try:
            targets = self._targets(result)
            first = asyncio.Event()
            told = await asyncio.gather(*(self._push_to(node, result, first) for node in targets))
        finally:
            self._pushed.discard((result.job, result.artifact))
        others = [name for name, why in told if why == SERVED]
        if others:
            self._on_served(result.job, f"served as {result.name} on {', '.join(sorted(others))}")
        for name, why in told:
            if why not in ("", SERVED):
                log.warning("%s, which job %s left, is not served on %s: %s", result.name, result.job, name, why)
                self._on_served(result.job, f"not served on {name}: {why}")

    def _targets(self, result: Result) -> list[NodeId]:
        """The node that trained, and, where it may leave that one, all that have its base."""
        others = [node for node, member in self._up() if node != result.node and _holds(member, result)]
        return [NodeId(result.node), *(others if result.shared else [])]

    async def _push_to(self, node: NodeId, result: Result, first: asyncio.Event) -> tuple[str, str]:
        """The node's name, and what became of it; the first that serves is told at once, and has no more to tell."""
        name = next((member.status.name for member in self._members(node)), node[:8])
        why = f"it did not answer within {PUSH_S:.0f} s"
        deadline = time.monotonic() + PUSH_S
        while time.monotonic() < deadline:
            try:
                told = await self._ask(node, SERVED_PATH, result.model_dump())
                if told.get("state") == SERVED:
                    if first.is_set():
                        return name, SERVED
                    first.set()
                    self._on_served(result.job, f"served as {result.name} on {name}")
                    return name, ""
            except Unavailable as error:
                why = str(error)
            except TiermeshError as error:
                return name, str(error)
            await asyncio.sleep(AGAIN_S)
        return name, why

    async def _copy(self, name: str, node: NodeId) -> None:
        """Take what `node` serves by this name, if it came from training and this node may and can have it."""
        try:
            told = validated(ServedList, await self._ask(node, LIST_PATH, {}))
            for result in told.results:
                if result.name == name and result.shared and self.here.has_base(result):
                    holders = list(dict.fromkeys([node, *result.holders]))
                    await self.here.take(result.model_copy(update={"holders": holders}))
        except TiermeshError as error:
            log.info("%s is not copied from node %s: %s", name, node[:8], error)

    async def _everywhere(
        self, path: str, body: Mapping[str, object], *, but: NodeId | None = None
    ) -> tuple[list[tuple[str, dict[str, object]]], list[str]]:
        """What each node answered, by name, and the names of those that did not."""
        members = [(node, member.status.name) for node, member in self._up() if node != but]
        answers = await asyncio.gather(*(self._ask(node, path, body) for node, _ in members), return_exceptions=True)
        found, unreachable = [], []
        for (_, name), answer in zip(members, answers, strict=True):
            if isinstance(answer, dict):
                found.append((name, answer))
            elif not isinstance(answer, TiermeshError):
                raise answer
            elif not isinstance(answer, InvalidInput):
                unreachable.append(name)
        return found, unreachable

    async def _ask(self, node: NodeId, path: str, body: Mapping[str, object]) -> dict[str, object]:
        """Raises `InvalidInput` for what a node refuses, `Unavailable` when it can't be reached."""
        if node == self._me:
            return await self.answer(path, body)
        for member in self._members(node):
            if member.state != "down":
                return await self._peers.ask(node, member.status.addresses, path, body)
        raise Unavailable(f"node {node[:8]} is not there")

    async def answer(self, path: str, body: Mapping[str, object]) -> dict[str, object]:
        """What this node answers a peer, or itself. Raises `TiermeshError`."""
        if path == SERVED_PATH:
            return {"state": await self._taken_in(validated(Result, body))}
        if path == LIST_PATH:
            return ServedList(results=list(self.here.results.values())).model_dump()
        if path == PIN_PATH:
            return self.here.pin(str(body.get("name")), pinned=body.get("pinned") is True).model_dump()
        assert path == REMOVE_PATH, path
        try:
            return (await self.here.remove(str(body.get("name")))).model_dump()
        except NotFound:
            return {}

    async def _taken_in(self, result: Result) -> str:
        """What is fetched goes on being fetched when nobody asks."""
        if (owner := self._owner(result.name)) is not None:
            raise NameTaken(f"name: node {owner} serves a model as {result.name}, which is no job's", param="name")
        key = result.name, result.job, result.artifact
        taking = self._taking.get(key)
        if taking is None:
            taking = self._taking[key] = asyncio.create_task(self.here.take(result), name=f"take {result.name}")
            taking.add_done_callback(lambda done: self._ended(key, done))
        done, _ = await asyncio.wait((taking,), timeout=ANSWER_S)
        if not done:
            return COMING
        self._forget(key, taking)
        taking.result()
        return SERVED

    def _ended(self, key: tuple[str, str, str], taking: asyncio.Task[ServedResult]) -> None:
        """What became of it is told to whoever asks again, if anybody does."""
        if not taking.cancelled():
            taking.exception()
        asyncio.get_running_loop().call_later(TOLD_S, self._forget, key, taking)

    def _forget(self, key: tuple[str, str, str], taking: asyncio.Task[ServedResult]) -> None:
        if self._taking.get(key) is taking:
            del self._taking[key]

    def _owner(self, name: str) -> str | None:
        """The name of a node that serves something by this name that is no job's; None when there is none."""
        for _, member in self._up():
            if any(model.name == name and not model.job for model in member.status.models):
                return member.status.name
        return None

    def _members(self, node: NodeId) -> list[Member]:
        member = self._view().members.get(node)
        return [] if member is None else [member]

    def _up(self) -> list[tuple[NodeId, Member]]:
        return [(node, member) for node, member in self._view().members.items() if member.state != "down"]


def _holds(member: Member, result: Result) -> bool:
    """Does it serve the base by our kernel, which alone can put an adapter beside it?"""
    models = [model for model in member.status.models if model.engine == ENGINE_NAME]
    if result.base_digest:
        return any(model.digest == result.base_digest for model in models)
    return any(model.name == result.base for model in models)


def _model(found: list[tuple[str, ServedResult]]) -> TrainedModel:
    """One result as several nodes have it: of two that differ, that of the later job, which will replace the other."""
    newest = max((result for _, result in found), key=lambda result: result.age)
    facts = newest.model_dump(include=set(TrainedModel.model_fields))
    nodes = sorted(node for node, result in found if result.artifact == newest.artifact)
    return TrainedModel.model_validate(facts | {"nodes": nodes, "pinned": any(result.pinned for _, result in found)})


def _nowhere(name: str, unreachable: list[str]) -> TiermeshError:
    if unreachable:
        return Unavailable(f"no node that answers has a trained model {name}; {', '.join(unreachable)} did not answer")
    return NotFound(f"no node has a trained model {name}; `mesh model list` shows those that there are", param="name")
