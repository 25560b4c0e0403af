"""What a training spec may name: what is built in, and what installed packages registered. Nothing is loaded here.

A package registers in one of the groups below, in its pyproject.toml:

    [project.entry-points."tiermesh.optimizers"]
    lion = "my_package.lion:lion"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Literal

from tiermesh.protocol.training import TrainingSpec

Kind = Literal["optimizer", "scheduler", "loss", "callback", "reader"]

GROUPS: Mapping[Kind, str] = {
    "optimizer": "tiermesh.optimizers",
    "scheduler": "tiermesh.schedulers",
    "loss": "tiermesh.losses",
    "callback": "tiermesh.callbacks",
    "reader": "tiermesh.readers",
}
"""Names of the entry-point groups."""

_KERNEL = "tiermesh.kernel.training"
_BUILT_IN: Mapping[Kind, Mapping[str, str]] = {
    "optimizer": {name: f"{_KERNEL}.optimizers:{name}" for name in ("adamw", "adamw8bit", "sgd")},
    "scheduler": {name: f"{_KERNEL}.schedules:{name}" for name in ("constant", "cosine", "linear")},
    "loss": {"cross_entropy": f"{_KERNEL}.plugins:cross_entropy"},
    "callback": {"log": f"{_KERNEL}.plugins:log_events"},
    "reader": {},
}
READER_FORMATS = ("auto", "csv", "json", "jsonl", "parquet", "text")
"""What `data.format` may be without a plugin."""


def installed(kind: Kind) -> dict[str, list[EntryPoint]]:
    """By name, what is built in first. More than one under a name can't be told apart."""
    found: dict[str, list[EntryPoint]] = {}
    for name, value in _BUILT_IN[kind].items():
        found.setdefault(name, []).append(EntryPoint(name, value, GROUPS[kind]))
    for entry in entry_points(group=GROUPS[kind]):
        found.setdefault(entry.name, []).append(entry)
    return found


def names(kind: Kind) -> list[str]:
    """What a spec may say, in order."""
    return sorted({*installed(kind), *(READER_FORMATS if kind == "reader" else ())})


def origin(entry: EntryPoint) -> str:
    """The package that registered it, e.g. `lion-optimizer 1.2`."""
    return "tiermesh itself" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


def named_plugins(spec: TrainingSpec) -> Iterator[tuple[str, Kind, str]]:
    """Each name in the spec that may be a plugin's: its field, what it should be, and the name."""
    yield "optimizer", "optimizer", spec.optimizer.name
    yield "scheduler", "scheduler", spec.scheduler.name
    yield "loss", "loss", spec.loss.name
    yield "data.format", "reader", spec.data.format
    for index, callback in enumerate(spec.callbacks):
        yield f"callbacks[{index}]", "callback", callback.name


def unknown_plugins(spec: TrainingSpec) -> list[tuple[str, str]]:
    """Field and sentence for each name that nothing on this machine has, or that two packages have."""
    return [(path, wrong) for path, kind, name in named_plugins(spec) if (wrong := _wrong(kind, name))]


def _wrong(kind: Kind, name: str) -> str | None:
    if kind == "reader" and name in READER_FORMATS:
        return None
    found = installed(kind).get(name, [])
    if not found:
        article = "an" if kind == "optimizer" else "a"
        return (
            f"is {name!r}, but no package on this machine has {article} {kind} of that name; "
            f"there are {', '.join(names(kind))}"
        )
    if len(found) > 1:
        return f"is {name!r}, which {' and '.join(map(origin, found))} both have; remove one of them"
    return None
