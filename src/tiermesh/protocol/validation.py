"""From plain JSON data to a model, with errors that name the field as its author wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tiermesh.errors import InvalidInput

MAX_PROBLEMS = 3
"""Problems told at once: enough to mend a request in one go, few enough to be read."""

_PLAIN = {
    "missing": "is required",
    "extra_forbidden": "is no field of this request",
    "model_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
    "list_type": "must be a JSON list",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
}
"""In the words of JSON what pydantic says in those of Python."""

ModelT = TypeVar("ModelT", bound=BaseModel)


class Wire(BaseModel):
    """What travels. Strict: "0.5" is no number, 1 no boolean, NaN refused. Unknown fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, populate_by_name=True)


def validated(model: type[ModelT], data: object) -> ModelT:
    """Parse `data` or raise `InvalidInput` whose `param` is the first wrong field, e.g. `messages[0].role`."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        told = [_sentence(_path(p["loc"]), _PLAIN.get(p["type"], p["msg"])) for p in problems[:MAX_PROBLEMS]]
        if len(problems) > MAX_PROBLEMS:
            told.append(f"and {len(problems) - MAX_PROBLEMS} more")
        raise InvalidInput("; ".join(told), param=_path(problems[0]["loc"]) or None) from None


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path


def _sentence(path: str, message: str) -> str:
    message = message.removeprefix("Value error, ").replace("Input should be ", "must be ", 1)
    return f"{path}: {message}" if path else f"the body: {message}"
