"""From a wrong training spec to all that is wrong with it, each by the path of its field and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tiermesh.errors import InvalidSpec
from tiermesh.protocol.training import Disagreement, Named, TrainingSpec

VALUE_LIMIT = 60
"""Characters of a wrong value that are repeated."""
UNSOUND = "-"
"""Stands for a model or a file that is not known."""
CUTS = 3
"""Fields that are wrong for themselves, those that then don't fit together, and those that a default does not fit."""
_MUST_BE = {
    "bool_type": "true or false",
    "dict_type": "a group of `name: value`",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "model_type": "a group of `name: value`",
    "string_too_short": "a text that is not empty",
    "string_type": "a text; put it in quotes when YAML reads it as something else",
    "tuple_type": "a list",
    "too_short": "a list that is not empty",
}
_BOUNDS = {
    "greater_than": "above",
    "greater_than_equal": "at least",
    "less_than": "below",
    "less_than_equal": "at most",
}
_REQUIRED = {
    "model_name": "is missing: which model is to be trained?",
    "dataset_path": "is missing: which file is to be learnt from?",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """`path` is the field as its author wrote it, e.g. `lora.r`; empty for the document as a whole."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path} {self.message}" if self.path else self.message


def read_spec(data: object) -> TrainingSpec:
    """Check plain data as YAML or JSON give it. Raises `InvalidSpec` with every problem."""
    found = spec_problems(data)
    if isinstance(found, TrainingSpec):
        return found
    raise InvalidSpec("; ".join(map(str, found)), param=found[0].path or None)


def spec_problems(data: object) -> TrainingSpec | list[Problem]:
    """The spec, or all that is wrong with it, in the order of the fields; at least one."""
    if not isinstance(data, Mapping):
        return [Problem("", f"a training spec is a list of `field: value`, not {_short(data)}")]
    found = _validated(data)
    if isinstance(found, TrainingSpec):
        return found
    wrong = list(_told(found))
    return wrong + [Problem(path, what) for path, what in _disagreements(data, found, wrong)]


def sound_part(data: Mapping[str, Any], wrong: Sequence[Problem]) -> TrainingSpec | None:
    """The spec without its fields that are `wrong`: these have their defaults, and `UNSOUND` where there is none. None
    where too little is left."""
    for _ in range(CUTS):
        for problem in wrong:
            data = _without(data, problem.path)
        found = spec_problems(dict.fromkeys(_REQUIRED, UNSOUND) | dict(data))
        if isinstance(found, TrainingSpec):
            return found
        wrong = found
    return None


def concerns(path: str, field: str) -> bool:
    """Is one of them the other, or within it?"""
    return any(
        one == other or one.startswith((f"{other}.", f"{other}[")) for one, other in ((path, field), (field, path))
    )


def _validated(data: Mapping[str, Any]) -> TrainingSpec | ValidationError:
    try:
        return TrainingSpec.model_validate(data)
    except ValidationError as error:
        return error


def _disagreements(
    data: Mapping[str, Any], error: ValidationError, wrong: Sequence[Problem]
) -> Iterator[tuple[str, str]]:
    """Pydantic looks how fields fit together only where each is right for itself; so they are looked at again without
    those that are `wrong`. What is about one of these is not known."""
    if wrong:
        rest: Mapping[str, Any] = data
        for problem in wrong:
            rest = _without(rest, problem.path)
        found = _validated(dict.fromkeys(_REQUIRED, UNSOUND) | dict(rest))
        if isinstance(found, TrainingSpec):
            return
        error = found
    for one in error.errors(include_url=False):
        cause = one.get("ctx", {}).get("error")
        for path, what, others in cause.found if isinstance(cause, Disagreement) else ():
            if not any(concerns(problem.path, name) for problem in wrong for name in (path, *others)):
                yield path, what


def _without(data: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Of a list, all of it goes; so does a group that lacks the field."""
    name, _, rest = path.partition(".")
    name = name.partition("[")[0]
    group = data.get(name)
    if path not in data and rest and isinstance(group, Mapping) and (less := _without(group, rest)) != group:
        return {**data, name: less}
    return {key: value for key, value in data.items() if key not in (name, path)}


def _told(error: ValidationError) -> Iterator[Problem]:
    """One for each field: of a choice between kinds pydantic tells what each of them minds."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in error.errors(include_url=False):
        if not isinstance(one.get("ctx", {}).get("error"), Disagreement):
            found.setdefault(_path(_written(one["loc"])), []).append(one)
    for path, minded in found.items():
        if not any(other.startswith((f"{path}[", f"{path}.")) for other in found):
            problem = _problem(minded[0])
            rights = dict.fromkeys(_right(one["type"], one) for one in minded[1:])
            yield Problem(path, "".join([problem.message, *(f", or {right}" for right in rights)]))


def _problem(error: Mapping[str, Any]) -> Problem:
    location, kind, given = _written(error["loc"]), error["type"], error["input"]
    path = _path(location)
    if kind == "extra_forbidden":
        return Problem(path, f"is no field; {_alternatives(str(location[-1]), location[:-1])}")
    if kind == "missing":
        return Problem(path, _REQUIRED.get(path, "is missing"))
    if path == "version":
        return Problem(path, f"is {_short(given)}, but this program reads version 1")
    return Problem(path, f"is {_short(given)}, but must be {_right(kind, error)}")


def _right(kind: str, error: Mapping[str, Any]) -> str:
    context = error.get("ctx", {})
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "")
    if kind in _BOUNDS:
        return f"{_BOUNDS[kind]} {next(iter(context.values()))}"
    if kind == "too_long":
        return f"no longer than {context['max_length']} entries"
    if kind == "string_too_long":
        return f"at most {context['max_length']} characters long"
    if kind == "value_error":
        return str(context["error"])
    return _MUST_BE.get(kind) or str(error["msg"])


def _written(location: Sequence[int | str]) -> list[int | str]:
    """Without what pydantic adds to it: the branch of a union, a mark for a key."""
    kept: list[int | str] = []
    model: type[BaseModel] | None = TrainingSpec
    for part in location:
        if isinstance(part, int) or part in (model.model_fields if model else {}) or not kept:
            kept.append(part)
            model = model if isinstance(part, int) else _model_under(model, part)
        elif _is_unknown(part):
            kept.append(part)
    return kept


def _is_unknown(part: str) -> bool:
    """A key that its author wrote, and not the name of a union's branch."""
    branches = ("literal", "tuple", "constrained", "function", "bool", "int", "none", "list", "dict", "[key]", "json")
    return not part.startswith(branches)


def _model_under(model: type[BaseModel] | None, name: str) -> type[BaseModel] | None:
    if model is None or name not in model.model_fields:
        return None
    return next(_models_in(model.model_fields[name].annotation), None)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _alternatives(given: str, group: Sequence[int | str]) -> str:
    model: type[BaseModel] | None = TrainingSpec
    for part in group:
        model = model if isinstance(part, int) else _model_under(model, part)
    known = list((model or Named).model_fields)
    near = difflib.get_close_matches(given, known, n=1)
    return f"did you mean {_path([*group, near[0]])}?" if near else f"there are {', '.join(known)}"


def _path(location: Sequence[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _short(value: object) -> str:
    if isinstance(value, dict | list | tuple):
        return "a group of values" if isinstance(value, dict) else "a list"
    if value is None:
        return "empty"
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= VALUE_LIMIT else f"{text[: VALUE_LIMIT - 1]}…"
