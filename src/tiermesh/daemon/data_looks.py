"""The data of jobs as the node sees it that they are given to: can it be used, and what is it?"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tiermesh.adapters.blobs import Blobs
from tiermesh.adapters.run_plan import look_at_data
from tiermesh.core.jobs import Dataset
from tiermesh.errors import DataUnusable, EnvironmentUnfit
from tiermesh.protocol.training import TrainingSpec

OF_DATA = {"task", "data"}
"""Fields of a spec that decide which records can be used: a sweep over seeds and rates is one look."""
LOOKS_KEPT = 256
"""Data that was looked at with these options is not looked at again: two hundred equal submissions cost one look."""
BAD_NAMED = 5
"""Records that are left out, by their numbers alone: every node gets to read them, and may not have the data."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What is wrong with it, or else what it is. Nothing of both where this machine can't look."""

    problems: str = ""
    seen: str = ""


class DataLooks:
    """One for a node. `folder` is where data lies by its name while it is looked at."""

    def __init__(self, blobs: Blobs, folder: Path) -> None:
        self._blobs = blobs
        self._folder = folder
        self._looks: dict[str, asyncio.Task[_Look]] = {}

    async def look(self, spec: TrainingSpec, data: Dataset, held_out: Dataset | None) -> str:
        """At all of the data, once. What it is, for a person; nothing, where this machine can't look. Raises
        `DataUnusable`."""
        options = spec.model_dump(mode="json", include=OF_DATA)
        told = json.dumps([options, asdict(data), held_out and asdict(held_out)], sort_keys=True)
        key = hashlib.sha256(told.encode()).hexdigest()
        look = self._looks.get(key)
        if look is None or (look.done() and (look.cancelled() or look.exception() is not None)):
            look = asyncio.create_task(asyncio.to_thread(self._look, key, spec, data, held_out), name="look at data")
            self._looks[key] = look
            for old in list(self._looks)[:-LOOKS_KEPT]:
                del self._looks[old]
        found = await asyncio.shield(look)
        if found.problems:
            raise DataUnusable(found.problems, param="data")
        return found.seen

    def _look(self, key: str, spec: TrainingSpec, data: Dataset, held_out: Dataset | None) -> _Look:
        """Blocks."""
        folder = self._folder / f"look-{key[:16]}"
        try:
            paths = {"dataset_path": self._linked(data, folder / "data")}
            if held_out is not None:
                paths["eval_path"] = self._linked(held_out, folder / "eval")
            look = look_at_data(spec.model_copy(update={name: str(path) for name, path in paths.items()}))
        except EnvironmentUnfit:
            return _Look()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if look.problems:
            told = "; ".join(map(str, look.problems))
            return _Look(problems=told.replace(f"{folder / 'data'}/", "").replace(f"{folder / 'eval'}/", ""))
        if not look.told:
            return _Look()
        names = [data.name] if held_out is None else [data.name, f"held out: {held_out.name}"]
        return _Look(seen="; ".join(_sentence(*each) for each in zip(names, look.told, strict=True)))

    def _linked(self, data: Dataset, folder: Path) -> Path:
        if (path := self._blobs.link(data.sha256, data.name, folder)) is None:
            raise DataUnusable(f"this node does not have the data {data.name} any more; send it again", param="data")
        return path


def _sentence(name: str, told: Mapping[str, Any]) -> str:
    """`faq.jsonl, 240 records of chat (JSONL); left out: 2 (lines 3, 17)`."""
    records, bad = told["records"], told["bad_records"]
    shapes = " and ".join(sorted(told["shapes"], key=lambda shape: -told["shapes"][shape]))
    seen = f"{name}, {records:,} record{'s' * (records != 1)} of {shapes} ({told['format'].upper()})"
    if not bad:
        return seen
    numbers = ", ".join(str(one["line"]) for one in told["bad"][:BAD_NAMED])
    more = ", …" * (bad > BAD_NAMED)
    return f"{seen}; left out: {bad:,} ({told['unit']}{'s' * (bad != 1)} {numbers}{more})"
