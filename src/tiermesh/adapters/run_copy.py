"""A run's checkpoint as an artifact, and an artifact as the run that goes on from it.

    checkpoints/step-00000120/...   the checkpoint; and the best one, where the run may come to give that as its result
    events/00000, 00001, ...        the events up to this checkpoint's own, cut into pieces: all but the last are those
                                    that the copy before had, so that a long run's history is not sent again and again

A run that is laid out from it tells its whole story: what came before, and then its own.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tiermesh.adapters.blobs import Blobs
from tiermesh.errors import DataUnusable, StateUnwritable
from tiermesh.protocol.artifacts import MAX_FILES, ArtifactFile, Manifest
from tiermesh.protocol.run_folder import RunFolder, checkpoint_step
from tiermesh.protocol.training_events import CheckpointSaved, from_line
from tiermesh.protocol.training_resume import what_forbids

PIECE_BYTES = 1 << 20
"""Of events."""
STAGED = ".going-on"
Keep = Callable[[str], None]
"""Is told each digest as soon as it is kept, to pin it."""
_EVENTS = re.compile(r"events/\d{5}")


async def checkpoint_manifest(blobs: Blobs, run: RunFolder, name: str, keep: Keep) -> Manifest:
    """What a run that goes on from the checkpoint `name` needs; all of it is in `blobs` then.

    Raises `FileNotFoundError` when the run has removed it meanwhile, and as `Blobs` does.
    """
    folders = [name, *(best for best in [await asyncio.to_thread(_best, run)] if best not in (None, name))]
    files = [file for folder in folders async for file in _kept(blobs, run.checkpoints / str(folder), run.path, keep)]
    events = await asyncio.to_thread(_events_until, run, name)
    for number, start in enumerate(range(0, len(events), PIECE_BYTES)):
        piece = events[start : start + PIECE_BYTES]
        keep(sha256 := await blobs.put_whole(piece))
        files.append(ArtifactFile(name=f"events/{number:05d}", sha256=sha256, size_bytes=len(piece)))
    return Manifest.of(files)


async def folder_manifest(blobs: Blobs, folder: Path, keep: Keep) -> Manifest:
    """All files of a folder, but for hidden ones and links. Raises `FileNotFoundError` where there is none."""
    files = [file async for file in _kept(blobs, folder, folder, keep)]
    if not files:
        raise FileNotFoundError(f"{folder} has no files")
    return Manifest.of(files)


def lay_out_run(blobs: Blobs, manifest: Manifest, run: RunFolder, spec: Mapping[str, Any] | None = None) -> None:
    """Make the folder of a run that goes on from the checkpoint in `manifest`, whose files are all in `blobs`.

    A run that has checkpoints stays as it is. Blocks. Raises `DataUnusable` for what is no checkpoint or not one from
    which a run of `spec` can go on, and `StateUnwritable`.
    """
    if has_checkpoints(run):
        return
    paths = [file.name.split("/") for file in manifest.files if file.name.startswith("checkpoints/")]
    steps = {path[1]: checkpoint_step(path[1]) for path in paths}
    if not paths or None in steps.values() or any(len(path) < 3 for path in paths):
        raise DataUnusable("the artifact is no checkpoint of a run")
    newest = max(steps, key=lambda name: (steps[name] or 0, name))
    if spec is not None and (forbids := what_forbids(_spec_of(blobs, manifest, newest), spec)):
        raise DataUnusable(f"another run's checkpoint: {', '.join(forbids)} changed")
    try:
        _lay_out(blobs, manifest, run, newest=newest)
    except OSError as error:
        raise StateUnwritable(f"{run.path} can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(run.path / STAGED, ignore_errors=True)


def has_checkpoints(run: RunFolder) -> bool:
    """Can it go on from what it has?"""
    return run.checkpoints.is_dir() and any(
        checkpoint_step(path.name) is not None for path in run.checkpoints.iterdir()
    )


def _lay_out(blobs: Blobs, manifest: Manifest, run: RunFolder, *, newest: str) -> None:
    """The events first and the checkpoints last: they are what tells that all is there."""
    staged = run.path / STAGED
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for file in manifest.files:
        if file.name.startswith("checkpoints/"):
            blobs.lay(file.sha256, staged / file.name)
    pieces = sorted((file.name, file.sha256) for file in manifest.files if _EVENTS.fullmatch(file.name))
    with (staged / "events").open("wb") as events:
        for _, sha256 in pieces:
            with (blobs.find(sha256) or staged / "gone").open("rb") as piece:
                while block := piece.read(PIECE_BYTES):
                    events.write(block)
    (staged / "checkpoints" / "latest").write_text(f"{newest}\n")
    if not run.events.exists():
        (staged / "events").replace(run.events)
    if run.checkpoints.is_dir() and not has_checkpoints(run):
        shutil.rmtree(run.checkpoints)
    (staged / "checkpoints").rename(run.checkpoints)


async def _kept(blobs: Blobs, folder: Path, root: Path, keep: Keep) -> AsyncIterator[ArtifactFile]:
    for path in await asyncio.to_thread(lambda: list(_files(folder))):
        sha256, size = await blobs.adopt(path)
        keep(sha256)
        yield ArtifactFile(name=path.relative_to(root).as_posix(), sha256=sha256, size_bytes=size)


def _files(folder: Path) -> Iterator[Path]:
    """Raises `FileNotFoundError` when the folder is gone."""
    for count, path in enumerate(sorted(folder.iterdir())):
        if count > MAX_FILES:
            raise DataUnusable(f"{folder} has more than {MAX_FILES} files")
        if path.name.startswith(".") or path.is_symlink():
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path


def _spec_of(blobs: Blobs, manifest: Manifest, name: str) -> Mapping[str, Any]:
    """With which the checkpoint was written."""
    paths = {file.name: blobs.find(file.sha256) for file in manifest.files}
    facts = paths.get(f"checkpoints/{name}/facts.json")
    try:
        if facts is None:
            raise FileNotFoundError
        spec = json.loads(facts.read_bytes())["facts"]["conditions"]["spec"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataUnusable("the checkpoint does not say of which run it is") from None
    if not isinstance(spec, dict):
        raise DataUnusable("the checkpoint does not say of which run it is")
    return spec


def _best(run: RunFolder) -> str | None:
    """The checkpoint that the run will give as its result if nothing better comes; None where it gives the last one."""
    try:
        if run.read_plan().spec.early_stop is None:
            return None
    except (OSError, ValueError):
        return None
    newest_first = sorted(run.checkpoints.iterdir(), reverse=True)
    losses = [(loss, path.name) for path in newest_first if (loss := _loss(path)) is not None]
    return min(losses, key=lambda pair: pair[0])[1] if losses else None


def _loss(checkpoint: Path) -> float | None:
    if checkpoint_step(checkpoint.name) is None:
        return None
    try:
        loss = json.loads((checkpoint / "facts.json").read_text())["loss"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return loss if isinstance(loss, float) and loss == loss else None


def _events_until(run: RunFolder, name: str) -> bytes:
    """All lines up to the last that says that this checkpoint was saved; none when none does."""
    content = run.events.read_bytes() if run.events.exists() else b""
    end = len(content)
    while (end := content.rfind(b"\n", 0, end)) >= 0:
        start = content.rfind(b"\n", 0, end) + 1
        match from_line(content[start:end]) if b'"checkpoint"' in content[start:end] else None:
            case CheckpointSaved(name=saved) if saved == name:
                return content[: end + 1]
    return b""
