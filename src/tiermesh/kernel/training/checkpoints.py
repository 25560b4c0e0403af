"""Checkpoints on disk: a killed process, a full disk or a rotten file never costs more than one interval.

    checkpoints/
      step-00000120/            complete, or not there at all
        tensors.safetensors     trainables, optimizer, random number generators
        facts.json              all the rest
        SHA256SUMS              as sha256sum writes and checks it
      step-00000120.2/          the same step saved again
      latest                    the name of the newest folder
      damaged-step-00000100/    did not match its sums; kept for a look

A save writes into `.staging-…`, syncs every file and the folder, and only then renames it, which is atomic; a folder
with the name of a step is therefore complete. `latest` is replaced the same way, after that. It is for people and
other programs: `newest` trusts sums alone. What a kill leaves behind begins with a dot and is removed by the next save.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tiermesh.errors import CheckpointUnusable
from tiermesh.kernel.training.failures import translate

Json = Any
"""What json.dumps takes."""

TENSORS, FACTS, SUMS, LATEST = "tensors.safetensors", "facts.json", "SHA256SUMS", "latest"
STAGING, TRASH, DAMAGED = ".staging-", ".trash-", "damaged-"

FORMAT = 1
"""Of the two files. A newer one than this is refused, not guessed at."""

MAX_DAMAGED = 2
"""So many damaged checkpoints are kept for a look; they may be large."""

DAMAGE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO})
"""What the system says of a file that is gone or rotten. All else, such as a lack of memory, is no fault of it."""

_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that a run is at the end of a step. `position` is the next one in the data's order."""

    step: int
    position: int
    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Json]
    loss: float | None = None
    """What `keep_best` goes by: the held-out loss where there is one."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """A checkpoint that was set aside, and why."""

    step: int
    path: Path
    reason: str


@dataclass(slots=True)
class Checkpoints:
    """The checkpoints of one run. One process writes; any may read."""

    folder: Path
    keep_last: int = 3
    """The newest ones. More than one, because a disk may damage the newest."""
    keep_best: int = 1
    """Those of the lowest loss besides."""
    damaged: list[Damaged] = field(default_factory=list, init=False)
    """What `newest` set aside; for the run's events."""

    def save(self, snapshot: Snapshot, *, good_until: int | None = None) -> Path:
        """Write it, make it the newest, forget what is too old; gives its folder. `good_until`: as for `prune`.

        Raises `DiskFull`, or what else `translate` says; then the checkpoints are what they were before.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        name = self._free_name(snapshot.step)
        staging = self.folder / f"{STAGING}{name}"
        try:
            _write(staging, snapshot)
        except Exception as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise translate(error) from error
        path = self.folder / name
        staging.rename(path)
        _sync(self.folder)
        self._point_to(path)
        self.prune(good_until)
        return path

    def newest(self) -> Snapshot | None:
        """The newest good one, every byte of it checked; None when there is none at all.

        Raises `CheckpointUnusable` when there were some and none is good, however often it is asked: to begin anew is
        for a person to say.
        """
        paths = self._newest_first()
        if (found := self._first_whole(paths)) is not None:
            return found
        if there := len(paths) or len(list(self.folder.glob(f"{DAMAGED}*"))):
            raise CheckpointUnusable(f"none of the {there} checkpoints in {self.folder} can be read; start afresh")
        return None

    def newest_until(self, step: int) -> Snapshot | None:
        """The newest whole one that is of `step` or an earlier one."""
        return self._first_whole([path for path in self._newest_first() if _step_of(path)[0] <= step])

    def last_step(self) -> int | None:
        """Of the newest one, whole or not."""
        paths = self._newest_first()
        return _step_of(paths[0])[0] if paths else None

    def read(self, path: Path) -> Snapshot:
        """One of them, every byte of it checked. Raises `CheckpointUnusable`."""
        try:
            return _read(path)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointUnusable(f"{path} can't be read: {error}") from error

    def best(self) -> Path | None:
        """The folder of the lowest loss, for `read`."""
        ranked = self._best_first()
        return ranked[0] if ranked else None

    def forget_after(self, step: int) -> None:
        """Remove those of later steps: the run went back to `step` and will take another way from there."""
        later = [path for path in self._newest_first() if _step_of(path)[0] > step]
        rest = [path for path in self._newest_first() if path not in later]
        if later and rest:
            self._point_to(rest[0])
        elif later:
            (self.folder / LATEST).unlink(missing_ok=True)
        for path in later:
            self._remove(path)

    def prune(self, good_until: int | None) -> None:
        """Forget what is too old. States until `good_until` were proven good: the newest of them is kept whatever its
        age, for a newer one may be damaged; and the oldest of those, which will be proven next. None: nobody judges."""
        newest = self._newest_first()
        # An earlier edition of the same step is the same state, older.
        latest_editions = list({_step_of(path)[0]: path for path in reversed(newest)}.values())[::-1]
        kept = {*latest_editions[: max(1, self.keep_last)], *self._best_first()[: self.keep_best]}
        if good_until is not None:
            good = [path for path in latest_editions if _step_of(path)[0] <= good_until]
            doubtful = latest_editions[: len(latest_editions) - len(good)]
            kept |= {*good[:1], *doubtful[-1:]}
        for path in newest:
            if path not in kept:
                self._remove(path)

    def _first_whole(self, paths: Iterable[Path]) -> Snapshot | None:
        """The others before it are set aside."""
        for path in paths:
            try:
                return _read(path)
            except (OSError, ValueError, KeyError) as error:
                if isinstance(error, OSError) and error.errno not in DAMAGE:
                    raise
                self._set_aside(path, str(error))
        return None

    def _newest_first(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        names = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(names, key=_step_of, reverse=True)

    def _best_first(self) -> list[Path]:
        losses = [(loss, path) for path in self._newest_first() if (loss := _loss_of(path)) is not None]
        return [path for _, path in sorted(losses, key=lambda pair: pair[0])]

    def _free_name(self, step: int) -> str:
        name = f"step-{step:08d}"
        editions = [_step_of(path)[1] for path in self._newest_first() if _step_of(path)[0] == step]
        return f"{name}.{max(editions) + 1}" if editions else name

    def _point_to(self, path: Path) -> None:
        new = self.folder / f"{STAGING}{LATEST}"
        try:
            _write_text(new, path.name + "\n")
            new.replace(self.folder / LATEST)
            _sync(self.folder)
        except OSError as error:
            # The checkpoint itself is whole and found without the pointer.
            log.warning("%s was saved, but %s could not be written: %s", path.name, LATEST, error)

    def _remove(self, path: Path) -> None:
        """Renamed first: one that is half removed must not look like one that is damaged."""
        trash = self.folder / f"{TRASH}{path.name}"
        path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def _set_aside(self, path: Path, reason: str) -> None:
        aside = self.folder / f"{DAMAGED}{path.name}"
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        self.damaged.append(Damaged(_step_of(path)[0], aside, reason))
        log.warning("checkpoint %s is damaged and was set aside as %s: %s", path.name, aside.name, reason)
        old = sorted(self.folder.glob(f"{DAMAGED}*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in old[MAX_DAMAGED:]:
            shutil.rmtree(path, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what a killed save or removal left."""
        for path in self.folder.iterdir():
            if path.name.startswith((STAGING, TRASH)):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _write(folder: Path, snapshot: Snapshot) -> None:
    folder.mkdir()
    facts = {
        "format": FORMAT,
        "step": snapshot.step,
        "position": snapshot.position,
        "loss": snapshot.loss,
        "facts": dict(snapshot.facts),
    }
    save_file(_apart(snapshot.tensors), folder / TENSORS)
    _sync(folder / TENSORS)
    _write_text(folder / FACTS, json.dumps(facts, indent=1, allow_nan=True, sort_keys=True) + "\n")
    sums = "".join(f"{_sha256(folder / name)}  {name}\n" for name in (TENSORS, FACTS))
    _write_text(folder / SUMS, sums)
    _sync(folder)


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each contiguous and in a storage of its own, as safetensors wants them; copied only where they are not."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return apart


def _read(path: Path) -> Snapshot:
    """Raises `ValueError` or `OSError` when it is not what was written, `CheckpointUnusable` for a newer format."""
    told = dict(_sums_of(path))
    for name in (TENSORS, FACTS):
        if told.get(name) != _sha256(path / name):
            raise ValueError(f"{name} is not what was written")
    facts = json.loads((path / FACTS).read_text())
    if facts["format"] > FORMAT:
        raise CheckpointUnusable(f"{path} was written by a newer version: format {facts['format']}, known is {FORMAT}")
    return Snapshot(
        step=facts["step"],
        position=facts["position"],
        loss=facts["loss"],
        facts=facts["facts"],
        tensors=load_file(path / TENSORS),
    )


def _sums_of(path: Path) -> Iterator[tuple[str, str]]:
    for line in (path / SUMS).read_text().splitlines():
        digest, _, name = line.partition("  ")
        yield name, digest


def _loss_of(path: Path) -> float | None:
    try:
        loss = json.loads((path / FACTS).read_text())["loss"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return loss if isinstance(loss, float) and loss == loss else None


def _step_of(path: Path) -> tuple[int, int]:
    """Step and edition."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 1)


def _write_text(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """On disk, whatever it is. A folder's names are its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
