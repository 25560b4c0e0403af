"""What training left and this node serves: taken in, kept, served again after a restart, dropped for want of room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from tiermesh.adapters.blobs import Blobs
from tiermesh.adapters.fetching import Fetcher, Holder
from tiermesh.adapters.lora_folder import read_adapter
from tiermesh.adapters.model_cache import sha256_of
from tiermesh.adapters.result_shelf import ResultShelf
from tiermesh.daemon.engine_room import EngineRoom
from tiermesh.errors import Forbidden, InvalidInput, NameTaken, NotFound, TiermeshError, UnknownModel
from tiermesh.protocol.serving import Result, ResultFile, ServedResult, read_origin
from tiermesh.types import NodeId

log = logging.getLogger(__name__)


class Served:
    """Owner of the shelf. `open` when the engines are; `close` before them. `holders` knows where nodes are.

    What is on the shelf stays in the store of blobs too, so that others can have it from here: the files are the same.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        rooms: EngineRoom,
        shelf: ResultShelf,
        blobs: Blobs,
        fetcher: Fetcher,
        holders: Callable[[Iterable[str]], Iterable[Holder]],
    ) -> None:
        self._me = me
        self._rooms = rooms
        self._shelf = shelf
        self._blobs = blobs
        self._fetcher = fetcher
        self._holders = holders
        self._turn = asyncio.Lock()
        """Held while names and room are given away."""

    @property
    def results(self) -> Mapping[str, ServedResult]:
        """By name."""
        return self._shelf.results

    async def open(self) -> None:
        """Serve again what was served before; what can't be is told, and kept."""
        await asyncio.to_thread(self._shelf.open)
        for result in self._shelf.results.values():
            try:
                await self._serve_again(result)
            except TiermeshError as error:
                log.warning("%s, which job %s left, is not served: %s", result.name, result.job, error)

    async def close(self) -> None:
        """Write down what was used last. May be called without `open`."""
        await asyncio.to_thread(self._shelf.note_use)

    async def take(self, result: Result) -> ServedResult:
        """Fetch it and serve it under its name; twice is once.

        Raises `NameTaken`, `Forbidden` where it may not be, `UnknownModel` when its base is not served here,
        `InvalidInput` when it does not fit, and what fetching raises.
        """
        if (there := self._known(result)) is not None:
            return there
        await self._demand_base(result)
        async with self._shelf.coming() as files:
            try:
                holders = self._holders(result.holders)
                await self._fetcher.folder(result.artifact, holders, files, owner=_owner(result))
                described = await asyncio.to_thread(_described, result, files)
                async with self._turn:
                    return self._known(result) or await self._put(described, files)
            except BaseException:
                self._blobs.unpin(_owner(result))
                raise

    async def remove(self, name: str) -> ServedResult:
        """Serve it no longer, and forget its files here. Raises `NotFound`."""
        async with self._turn:
            result = self._shelf.results.get(name)
            if result is None:
                raise NotFound(f"this node has no trained model {name}", param="name")
            self._shelf.bar(result.job)
            await self._drop(name)
            log.info("%s, which job %s left, is removed", name, result.job)
            return result

    def pin(self, name: str, *, pinned: bool) -> ServedResult:
        """Keep it whatever else comes, or no longer so. Raises `NotFound`."""
        if name not in self._shelf.results:
            raise NotFound(f"this node has no trained model {name}", param="name")
        return self._shelf.pin(name, pinned=pinned)

    def file(self, name: str, file: str) -> Path:
        """One of a result's files. Raises `NotFound`."""
        result = self._shelf.results.get(name)
        if result is None or file not in {each.name for each in result.files}:
            raise NotFound(f"this node has no file {file} of a trained model {name}", param="name")
        return self._shelf.files(name) / file

    def has_base(self, result: Result) -> bool:
        """Does this node serve the model that it was trained from?"""
        return self._rooms.holds(result.base, result.base_digest)

    def _known(self, result: Result) -> ServedResult | None:
        """What is here already, if it is that. Raises when there is a reason never to take it."""
        if not result.shared and result.node != self._me:
            raise Forbidden(f"{result.name} stays on the node that trained it: the mesh is open, and nobody shared it")
        if self._shelf.is_barred(result.job):
            raise NotFound(f"{result.name} was removed from this node by a person", param="name")
        there = self._shelf.results.get(result.name)
        if there is not None and there.job != result.job and there.age > result.age:
            raise NameTaken(f"name: {result.name} is what the later job {there.job} left", param="name")
        if there is None and result.name in self._names():
            raise NameTaken(f"name: {result.name} is served on this node already, and is something else", param="name")
        return there if there is not None and (there.job, there.artifact) == (result.job, result.artifact) else None

    def _names(self) -> set[str]:
        return {model.name for engine in self._rooms for model in engine.models}

    async def _demand_base(self, result: Result) -> None:
        """An adapter is nothing without it. The node that trained has it on its disk, served or not."""
        if result.kind == "model" or self.has_base(result):
            return
        if result.node != self._me:
            raise UnknownModel(f"base: this node does not serve {result.base}", param="base")
        await self._rooms.hold(result.base, result.base_digest)

    async def _put(self, result: ServedResult, files: Path) -> ServedResult:
        for name in self._shelf.too_many(result):
            log.info("%s makes room for %s; other nodes may still have it", name, result.name)
            await self._drop(name)
        if result.name in self._shelf.results:
            await self._drop(result.name)
        await self._shelf.put(result, files)
        try:
            await self._serve(result, later=False)
        except BaseException:
            await self._shelf.remove(result.name)
            raise
        log.info("%s is served, which job %s left", result.name, result.job)
        return result

    async def _serve_again(self, result: ServedResult) -> None:
        if result.kind == "adapter":
            with suppress(UnknownModel, NameTaken):  # its name may be that of a model which is still looked for
                await self._rooms.hold(result.base, result.base_digest)
        await self._serve(result, later=True)

    async def _serve(self, result: ServedResult, *, later: bool) -> None:
        files = self._shelf.files(result.name)
        if result.kind == "model":
            await self._rooms.add_model(result.name, files, result.job)
            return
        facts = result.name, str(files), result.base, result.base_digest, result.job
        await self._rooms.add_adapter(await asyncio.to_thread(read_adapter, *facts), later=later)

    async def _drop(self, name: str) -> None:
        result = self._shelf.results[name]
        with suppress(UnknownModel):  # it may never have been served: its base is gone
            await (self._rooms.drop_model(name) if result.kind == "model" else self._rooms.drop_adapter(name))
        await self._shelf.remove(name)
        self._blobs.unpin(_owner(result))


def _owner(result: Result) -> str:
    return f"served-{result.artifact}"


def _described(result: Result, files: Path) -> ServedResult:
    """With what its own files say. Blocks. Raises `InvalidInput` when they say something else."""
    paths = sorted(path for path in files.rglob("*") if path.is_file())
    told = [
        ResultFile(name=str(path.relative_to(files)), size_bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in paths
    ]
    origin = read_origin(files)
    base_digest = result.base_digest or (origin.base_digest if origin is not None else "")
    if origin is not None and origin.base_digest and origin.base_digest != base_digest:
        raise InvalidInput(
            f"base_digest: {result.name} was trained on {origin.base_model} with the digest {origin.base_digest}, not "
            f"{base_digest}",
            param="base_digest",
        )
    size_bytes = sum(file.size_bytes for file in told)
    facts = result.model_dump() | {"base_digest": base_digest, "size_bytes": size_bytes, "files": told}
    return ServedResult.model_validate(facts)
