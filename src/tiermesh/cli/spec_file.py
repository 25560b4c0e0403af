"""From a file, options and `--set key=value` to the plain data of a training spec; only its form is checked here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tiermesh.config.yaml_text import plain_data
from tiermesh.core.evaluation import parse_limit
from tiermesh.errors import InvalidSpec

SIZE_LIMIT_BYTES = 1024 * 1024
"""A spec is written by hand; anything larger is some other file, most likely the data."""
GATES = ("max_final_loss", "max_gap", "canary")
"""What `protocol.jobs.GatesGiven` has."""
PATHS = ("dataset_path", "eval_path")
"""Fields that a file may give relative to its own folder."""


def spec_data(
    file: Path | None,
    options: Mapping[str, object],
    settings: Iterable[str] = (),
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`before`, or the file's fields, then the options' (None: not given), then `settings` like `lora.r=8`; the later
    ones win.

    Paths become absolute: the file's from its folder, the others from here. Raises `InvalidSpec`, `InvalidConfig`.
    """
    data = dict(before or {}) if file is None else _anchored(_read(file), file.absolute().parent)
    mine = {name: value for name, value in options.items() if value is not None}
    for name, value in map(_setting, settings):
        _put(mine, name, value)
    return _joined(data, _anchored(mine, Path.cwd()))


def gates_of(settings: Iterable[str]) -> dict[str, Any]:
    """From `max_gap=1.5` and its like. Raises `InvalidSpec`."""
    gates: dict[str, Any] = {}
    for text in settings:
        name, value = _setting(text, "--gate", "--gate max_final_loss=2.5 or --gate max_gap=any")
        if name not in GATES:
            raise InvalidSpec(f"--gate {text!r}: there are {', '.join(GATES)}", param="gate")
        gates[name] = _gate(name, value)
    return gates


def name_of(name: str | None) -> str | None:
    """As it was given. Raises `InvalidSpec`."""
    from tiermesh.protocol.jobs import check_name

    try:
        return name if name is None else check_name(name)
    except ValueError as error:
        raise InvalidSpec(f"--name {name!r}: {error}", param="name") from error


def _gate(name: str, value: object) -> object:
    if name == "canary":
        if not isinstance(value, bool):
            raise InvalidSpec(f"--gate canary is {value!r}, but must be true or false", param="gate")
        return value
    try:
        return parse_limit(value)
    except ValueError as error:
        raise InvalidSpec(f"--gate {name} is {value!r}, but must be {error}", param="gate") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.is_dir():
            raise InvalidSpec(f"{file} is a folder; a training spec is a YAML or JSON file", param="spec")
        if file.stat().st_size > SIZE_LIMIT_BYTES:
            raise InvalidSpec(f"{file} is larger than 1 MiB: is it a training spec, or the data?", param="spec")
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvalidSpec(f"can't read the training spec {file}: {reason}", param="spec") from error
    data = plain_data(text, str(file))
    if not isinstance(data, dict):
        what = {type(None): "empty", list: "a list"}.get(type(data), "plain text")
        raise InvalidSpec(f"{file} is {what}; a training spec has lines like `model_name: smollm2:135m`", param="spec")
    return {str(key): value for key, value in data.items()}


def _setting(
    text: str, option: str = "--set", like: str = "--set learning_rate=1e-4 or --set lora.r=8"
) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise InvalidSpec(f"{option} {text!r} should be like {like}", param=option.strip("-"))
    return name.strip(), plain_data(value, f"{option} {name.strip()}")


def _put(data: dict[str, Any], path: str, value: object) -> None:
    *groups, last = path.split(".")
    for group in groups:
        data = data.setdefault(group, {})
        if not isinstance(data, dict):
            raise InvalidSpec(f"--set {path}: {group} was set to a value, not to a group", param="set")
    data[last] = value


def _joined(data: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Groups are joined; everything else is replaced."""
    joined = dict(data)
    for name, value in over.items():
        before = joined.get(name)
        joined[name] = _joined(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return joined


def _anchored(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    return data | {
        name: str(folder / Path(value).expanduser())
        for name in PATHS
        if isinstance(value := data.get(name), str) and value
    }
