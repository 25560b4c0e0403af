"""What training left, as models of the mesh: listed, kept, removed, and their files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import quote

from tiermesh.client.answers import decoded
from tiermesh.client.http import Http
from tiermesh.protocol.serving import MODELS_PATH, RemovalReport, TrainedList, TrainedModel


class ModelDoor(Http):
    """The routes under `/api/models`."""

    async def trained_models(self) -> TrainedList:
        """All of them, on whichever nodes, by name."""
        return decoded(TrainedList, await self._json("GET", MODELS_PATH))

    async def trained_model(self, name: str) -> TrainedModel:
        """One of them, with its files."""
        return decoded(TrainedModel, await self._json("GET", _path(name)))

    async def pin_model(self, name: str, *, pinned: bool = True) -> TrainedModel:
        """Keep it where it is whatever else comes, or no longer so."""
        return decoded(TrainedModel, await self._json("POST", f"{_path(name)}/pin", {"pinned": pinned}))

    async def remove_model(self, name: str) -> RemovalReport:
        """Have no node serve it any more, and none keep its files for that."""
        return decoded(RemovalReport, await self._json("DELETE", _path(name)))

    def model_file(self, name: str, file: str) -> AsyncIterator[bytes]:
        """The bytes of one of its files."""
        return self._chunks(f"{_path(name)}/files/{quote(file)}", method="GET")


def _path(name: str) -> str:
    return f"{MODELS_PATH}/{quote(name, safe='')}"
