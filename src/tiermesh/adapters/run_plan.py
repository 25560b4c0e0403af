"""From a checked spec to the plan of a run: what the spec names is found on this machine, and fingerprinted."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiermesh.adapters.data_inspector import inspect_data
from tiermesh.adapters.model_cache import sha256_of
from tiermesh.adapters.model_source import LocalModel, resolve
from tiermesh.errors import BadData, EnvironmentUnfit, InvalidSpec, ModelSourceFailed, UnknownModel
from tiermesh.protocol.run_folder import RunPlan
from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_plugins import READER_FORMATS, unknown_plugins
from tiermesh.protocol.training_problems import Problem

LIBRARIES = ("torch", "transformers", "peft")
"""Without these nothing is trained; the others are asked for by what needs them."""


@dataclass(frozen=True, slots=True)
class DataLook:
    """What is wrong with a run's data; the records that will be left out, by line; and what the kernel told of each
    file that it could read (`inspect_data`): the one learnt from, then the one held out."""

    problems: tuple[Problem, ...] = ()
    left_out: tuple[Problem, ...] = ()
    told: tuple[Mapping[str, Any], ...] = ()

    def __add__(self, other: DataLook) -> DataLook:
        return DataLook(self.problems + other.problems, self.left_out + other.left_out, self.told + other.told)


def machine_problems(spec: TrainingSpec) -> list[Problem]:
    """What this machine lacks for a spec that is right in itself: model, files, plugins; in the order of the fields."""
    found = [_model_problem(spec), *(_file_problem(name, path) for name, path in _files(spec))]
    told = [problem for problem in found if problem is not None]
    return told + [Problem(path, what) for path, what in unknown_plugins(spec)]


def plan_of(spec: TrainingSpec) -> RunPlan:
    """Find and fingerprint what the spec names. Raises `InvalidSpec` with all that is missing."""
    if problems := machine_problems(spec):
        raise InvalidSpec("; ".join(map(str, problems)), param=problems[0].path or None)
    model = trainable_model(spec.model_name)
    return RunPlan(
        spec=spec,
        model_path=str(model.path),
        model_digest=model.digest,
        data_path=spec.dataset_path,
        data_digest=_digest(spec.dataset_path),
        eval_path=spec.eval_path,
        eval_digest=None if spec.eval_path is None else _digest(spec.eval_path),
    )


def look_at_data(spec: TrainingSpec, tokenizer: Path | None = None) -> DataLook:
    """At all of the data of a spec that is right otherwise; nothing of a plugin's format, which only the run knows.

    With a `tokenizer`'s folder the data is tokenised, which the run then need not do again. Raises `EnvironmentUnfit`
    when it can't be looked at.
    """
    if spec.data.format not in READER_FORMATS:
        return DataLook()
    check_libraries()
    look = look_at_file(spec, "dataset_path", spec.dataset_path, tokenizer)
    return look if spec.eval_path is None else look + look_at_file(spec, "eval_path", spec.eval_path, tokenizer)


def look_at_file(spec: TrainingSpec, field: str, path: str, tokenizer: Path | None = None) -> DataLook:
    """The same of one file, which `field` names, of a format that is built in."""
    try:
        told = inspect_data(Path(path), tokenizer=tokenizer, spec=spec.model_dump(mode="json"))
    except BadData as error:
        return DataLook(problems=(Problem(field, f"is {path}: {error}"),))
    left_out = tuple(_lines(told, "" if field == "dataset_path" else f"{field} "))
    count, bound = told["bad_records"], spec.data.max_bad_records
    if not told["records"]:
        wrong = Problem(field, f"is {path}, which has no record that can be used")
    elif count > bound:
        many = f"1 record of {path} is" if count == 1 else f"{count:,} records of {path} are"
        wrong = Problem("data.max_bad_records", f"is {bound}, but {many} bad")
    else:
        return DataLook(left_out=left_out, told=(told,))
    return DataLook(problems=(wrong, *left_out), told=(told,))


def check_libraries() -> None:
    """Raises `EnvironmentUnfit` when this machine can't train at all."""
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        raise EnvironmentUnfit(f"training needs {', '.join(missing)}: pip install 'tiermesh[train]'")


def trainable_model(name: str) -> LocalModel:
    """The model of this name, here and as files that can be trained. Raises `UnknownModel`, `ModelSourceFailed`."""
    if (Path(name).expanduser() / "adapter_config.json").exists():
        raise ModelSourceFailed(
            f"{name} holds an adapter, not a model: put it into its base first, with `mesh model export NAME --to DIR "
            "--merge` or by training with --merge"
        )
    model = resolve(name)
    if model.path.is_file():
        raise ModelSourceFailed(f"{model.path} is a GGUF file, which can't be trained; take the model as safetensors")
    return model


def _lines(told: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """The first bad records, and how many more there are."""
    for bad in told["bad"]:
        yield Problem(f"{where}{told['unit']} {bad['line']}", bad["reason"])
    if more := told["bad_records"] - len(told["bad"]):
        yield Problem(where.strip(), f"and {more:,} more {'record is' if more == 1 else 'records are'} bad")


def _files(spec: TrainingSpec) -> list[tuple[str, str]]:
    named = (("dataset_path", spec.dataset_path), ("eval_path", spec.eval_path))
    return [(field, path) for field, path in named if path is not None]


def _file_problem(field: str, name: str) -> Problem | None:
    path = Path(name)
    if path.is_dir():
        return Problem(field, f"is {name}, which is a folder; name the file in it")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        return Problem(field, f"is {name}, which can't be read: {(error.strerror or 'unknown reason').lower()}")
    return Problem(field, f"is {name}, which is empty") if empty else None


def _model_problem(spec: TrainingSpec) -> Problem | None:
    try:
        trainable_model(spec.model_name)
    except (UnknownModel, ModelSourceFailed) as error:
        return Problem("model_name", f"is {spec.model_name!r}: {error}")
    return None


def _digest(path: str) -> str:
    return f"sha256:{sha256_of(Path(path))}"
