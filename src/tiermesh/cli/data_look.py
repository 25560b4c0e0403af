"""A short look at the data of a job before it is sent, on the machine where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tiermesh.cli.job_view import looked_at
from tiermesh.cli.render import size
from tiermesh.errors import BadData, InvalidSpec, TiermeshError

if TYPE_CHECKING:
    from tiermesh.protocol.training import TrainingSpec

LIMIT_BYTES = 32_000_000
"""What takes longer than some seconds to look at is looked at by a node alone, which does so anyway."""


def look(spec: TrainingSpec, path: Path, field: str) -> str:
    """Format, count and lengths; less where this machine lacks what that needs. Raises `InvalidSpec`."""
    from tiermesh.adapters.data_inspector import inspect_data
    from tiermesh.protocol.training_plugins import READER_FORMATS

    size_bytes = path.stat().st_size
    unseen = f"{path.name}, {size(size_bytes)}"
    if size_bytes > LIMIT_BYTES or spec.data.format not in READER_FORMATS:
        return unseen
    try:
        told = inspect_data(path, tokenizer=_tokenizer(spec.model_name), spec=spec.model_dump(mode="json"))
    except BadData as error:
        raise InvalidSpec(f"{field} is {path}: {error}", param=field) from error
    except TiermeshError:
        return unseen
    if not told["records"]:
        first = f": {told['unit']} {told['bad'][0]['line']} {told['bad'][0]['reason']}" if told["bad"] else ""
        raise InvalidSpec(f"{field} is {path}, which has no record that can be used{first}", param=field)
    return looked_at(str(path), told)


def _tokenizer(model: str) -> Path | None:
    """The model's folder, where it is on this machine too."""
    from tiermesh.adapters.model_source import resolve

    try:
        found = resolve(model).path
    except TiermeshError:
        return None
    return found if found.is_dir() and (found / "tokenizer_config.json").exists() else None
