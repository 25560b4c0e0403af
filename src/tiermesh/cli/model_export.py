"""`mesh model export`: a trained model's files, brought here and checked, and put into their base if that is asked."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tiermesh.cli import connect
from tiermesh.errors import EngineFailed, InvalidInput

if TYPE_CHECKING:
    from tiermesh.client import RemoteClient
    from tiermesh.protocol.serving import ResultFile, TrainedModel

EXPORT_S = 600.0
"""Between two pieces of a file; the first of a large model comes once a peer has been asked for it."""


def export_model(name: str, to: Path, *, url: str | None, merge: bool) -> dict[str, Any]:
    """Write it; gives what is told as JSON. The folder appears whole or not at all.

    Raises `InvalidInput` when the folder is there or the base is not the one that it was trained on, and whatever
    fetching and merging raise.
    """
    target = to.expanduser().absolute()
    if target.exists():
        raise InvalidInput(f"--to: {target} is there already; name a new folder", param="to")
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".{target.name}.coming")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        model, base = connect.run(_bring_all(name, staged, url, merge=merge))
        if base is None:
            staged.rename(target)
        else:
            _merge(base, staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    kind = "adapter" if model.kind == "adapter" and not merge else "model"
    size_bytes = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    facts = {"name": model.name, "kind": kind, "folder": str(target), "size_bytes": size_bytes}
    return facts | {"base": model.base, "base_digest": model.base_digest, "job": model.job}


async def _bring_all(name: str, folder: Path, url: str | None, *, merge: bool) -> tuple[TrainedModel, Path | None]:
    """All files; gives what they are, and the folder of the base that they are to be put into."""
    async with connect.open_mesh(url, timeout_s=EXPORT_S) as mesh:
        model = await mesh.trained_model(name)
        base = await asyncio.to_thread(_base, model) if merge and model.kind == "adapter" else None
        for file in model.files:
            await _bring(mesh, model.name, file, folder)
    return model, base


async def _bring(mesh: RemoteClient, name: str, file: ResultFile, folder: Path) -> None:
    """One file, which must be what the node said of it."""
    if PurePosixPath(file.name).is_absolute() or ".." in PurePosixPath(file.name).parts:
        raise EngineFailed(f"{mesh.url} names a file {file.name!r}, which would lie outside of the folder")
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    found = hashlib.sha256()
    with path.open("wb") as written:
        async for chunk in mesh.model_file(name, file.name):
            found.update(chunk)
            written.write(chunk)
    if found.hexdigest() != file.sha256:
        raise EngineFailed(f"{file.name} came damaged from {mesh.url}: try again")


def _base(model: TrainedModel) -> Path:
    """The folder of the model that it was trained on, on this machine; looked for before anything is fetched."""
    from tiermesh.adapters.model_source import resolve

    local = resolve(model.base)
    if model.base_digest and local.digest != model.base_digest:
        raise InvalidInput(
            f"--merge: {model.name} was trained on {model.base} with the digest {model.base_digest}, and {local.path} "
            f"has {local.digest}",
            param="merge",
        )
    return local.path


def _merge(base: Path, adapter: Path, target: Path) -> None:
    from tiermesh.adapters.merger import merge

    merge(base, adapter, target)
