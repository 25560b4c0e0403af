"""From a failed pydantic validation to one sentence: which field, what it was, what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from tiermesh.errors import InvalidConfig

SHOWN_LIMIT = 5
"""Mistakes told at once: more than this many is a file of some other kind."""

VALUE_LIMIT = 60
"""Characters of a wrong value that are repeated in the message."""

_MUST_BE = {
    "bool_type": "true or false",
    "dict_type": "a group of `name: value` settings",
    "float_type": "a number",
    "int_type": "a whole number",
    "model_type": "a group of settings",
    "string_too_short": "a text that is not empty",
    "string_type": "text; put it in quotes when YAML reads it as something else",
    "tuple_type": "a list",
}
_BOUNDS = {
    "greater_than": "above",
    "greater_than_equal": "at least",
    "less_than": "below",
    "less_than_equal": "at most",
}
_SECRETS = ("token", "auth_token")


def explain(error: ValidationError, model: type[BaseModel], source: str) -> InvalidConfig:
    """The error to raise for `model`, read from `source` (a file's name or `policy`)."""
    found = error.errors(include_url=False)
    told = [_sentence(one, model) for one in found[:SHOWN_LIMIT]]
    if len(found) > SHOWN_LIMIT:
        told.append(f"and {len(found) - SHOWN_LIMIT} more")
    return InvalidConfig(f"{source}: {'; '.join(told)}", param=path_of(found[0]["loc"]) or None)


def path_of(location: Sequence[int | str]) -> str:
    """`("nodes", 0, "tier")` is `nodes[0].tier`; a wrong key of a free mapping is named by the mapping."""
    named = location[:-2] if location[-1:] == ("[key]",) else location
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in named)
    return text.removeprefix(".")


def _sentence(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    location, kind, given = error["loc"], error["type"], error["input"]
    path = path_of(location)
    if kind == "extra_forbidden":
        return f"{path} is no setting; {_alternatives(str(location[-1]), _siblings(model, location[:-1]))}"
    if kind == "missing":
        return f"{path} is missing"
    if kind == "value_error" and not location:
        return str(error["ctx"]["error"])
    shown = "hidden" if location and location[-1] in _SECRETS else _short(given)
    return f"{path or 'the file'} is {shown}, but must be {_right(kind, error)}"


def _right(kind: str, error: Mapping[str, Any]) -> str:
    context = error.get("ctx", {})
    if kind == "literal_error":
        return str(context["expected"])
    if kind in _BOUNDS:
        return f"{_BOUNDS[kind]} {next(iter(context.values()))}"
    if kind == "too_long":
        return f"no longer than {context['max_length']} entries"
    if kind == "string_too_long":
        return f"at most {context['max_length']} characters long"
    if kind == "value_error":
        return str(context["error"])
    return _MUST_BE.get(kind) or str(error["msg"])


def _alternatives(given: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def _siblings(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The fields of the section of `model` that `location` points to."""
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        model = next(t for t in (annotation, *getattr(annotation, "__args__", ())) if _is_model(t))
    return list(model.model_fields)


def _is_model(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _short(value: object) -> str:
    if isinstance(value, dict | list):
        return "a list" if isinstance(value, list) else "a group of settings"
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= VALUE_LIMIT else f"{text[: VALUE_LIMIT - 1]}…"
