"""A training spec before anything is begun: all that is wrong with it, as far as that can be told without a run.

What a part of it lacks hides nothing of the others: the data is looked at with the fields that are sound, and without
the model where that is not there. What only a run can tell is told by it: whether memory suffices, whether the weights
are good, whether plugins and their options do what they should.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from tiermesh.adapters.layer_inspector import inspect_layers
from tiermesh.adapters.model_source import LocalModel
from tiermesh.adapters.run_plan import DataLook, check_libraries, look_at_file, machine_problems, trainable_model
from tiermesh.errors import BadSpec, EnvironmentUnfit, ModelUnusable
from tiermesh.protocol.training import Task, TrainingSpec
from tiermesh.protocol.training_plugins import READER_FORMATS
from tiermesh.protocol.training_problems import Problem, concerns, sound_part, spec_problems

TOKENISED_BYTES = 32_000_000
"""Data of this size is tokenised within seconds, and a run finds that done; of more it shows how far it is itself."""
LOOKED_AT_BYTES = 300_000_000
"""Data of this size is read within some ten seconds; of more a run is begun unseen, and says itself what is bad."""
READING = ("data.format", "data.fields", "data.template")
"""Without these it is not known how the data is to be read, and every line would be wrong."""


@dataclass(frozen=True, slots=True)
class Findings:
    """`left_out`: records that a run will do without. `unseen`: what was not looked at, and why, each in a sentence."""

    problems: tuple[Problem, ...] = ()
    left_out: tuple[Problem, ...] = ()
    unseen: tuple[str, ...] = ()


def check(data: Mapping[str, Any], *, has_gpu: bool) -> Findings:
    """All about a document as YAML or JSON give it, however wrong. Reads all of the data."""
    found = spec_problems(data)
    if isinstance(found, TrainingSpec):
        return _checked(found, [], has_gpu)
    sound = sound_part(data, found)
    return Findings(tuple(found)) if sound is None else _checked(sound, found, has_gpu)


def obstacles(spec: TrainingSpec, model: LocalModel, *, has_gpu: bool) -> tuple[Problem, ...]:
    """What a new run of a spec, whose model and files are here, would fail for as soon as it has read them. A large
    file of data is not looked at."""
    sizes = [Path(path).stat().st_size for _, path in _files(spec)]
    tokenizer = model.path if (model.path / "tokenizer_config.json").exists() else None
    found = [*_machine_faults(spec, has_gpu), *_layer_faults(spec, model)]
    if sum(sizes) > LOOKED_AT_BYTES or spec.data.format not in READER_FORMATS:
        return tuple(found)
    look = _look(spec, _files(spec), tokenizer if sum(sizes) <= TOKENISED_BYTES else None)
    return (*found, *look.problems, *_context_faults(spec, model, look))


def _checked(spec: TrainingSpec, wrong: Sequence[Problem], has_gpu: bool) -> Findings:
    """Of the sound part of a spec that is `wrong` otherwise."""

    def told(path: str) -> bool:
        return any(concerns(path, problem.path) for problem in problems)

    problems = list(wrong)
    problems += [problem for problem in machine_problems(spec) if not told(problem.path)]
    problems += _machine_faults(spec, has_gpu)
    model = None if told("model_name") else trainable_model(spec.model_name)
    if model is not None:
        problems += _layer_faults(spec, model)
    files = [(field, path) for field, path in _files(spec) if not told(field)]
    look, unseen = DataLook(), ""
    if mistaken := next((problem.path for problem in wrong if _is_of_reading(problem.path)), None):
        unseen = f"the data: without {mistaken} it is not known how to read it"
    elif spec.data.format not in READER_FORMATS:
        unseen = f"the data: only a run reads by a plugin ({spec.data.format})"
    elif files:
        try:
            check_libraries()
            look = _look(spec, files, None if model is None else model.path, guess=told("task"))
        except EnvironmentUnfit as error:
            unseen = f"the data: {error}"
    problems += look.problems
    if model is not None and not told("seq_len"):
        problems += _context_faults(spec, model, look)
    return Findings(tuple(problems), look.left_out, (unseen,) if unseen else ())


def _is_of_reading(path: str) -> bool:
    """Also a field that there is not, in `data`: it may be meant for one of these."""
    known = path in {f"data.{name}" for name in ("max_bad_records", "train_on", "token_masking")}
    return concerns(path, "data") and not known


def _files(spec: TrainingSpec) -> list[tuple[str, str]]:
    named = (("dataset_path", spec.dataset_path), ("eval_path", spec.eval_path))
    return [(field, path) for field, path in named if path is not None]


def _look(
    spec: TrainingSpec, files: Sequence[tuple[str, str]], tokenizer: Path | None, *, guess: bool = False
) -> DataLook:
    """`guess`: the task is not known, and is taken for the one that most of the records fit."""
    if guess:
        looks = [_look(spec.model_copy(update={"task": task}), files, tokenizer) for task in get_args(Task)]
        return max(looks, key=lambda look: sum(told["records"] for told in look.told))
    try:
        looks = [look_at_file(spec, field, path, tokenizer) for field, path in files]
    except (BadSpec, ModelUnusable) as error:  # what the tokenizer lacks says nothing of the data
        wrong = (
            Problem("", str(error)) if isinstance(error, BadSpec) else Problem("model_name", f"is unusable: {error}")
        )
        return DataLook(problems=(wrong,)) + _look(spec, files, None)
    return sum(looks, DataLook())


def _machine_faults(spec: TrainingSpec, has_gpu: bool) -> Iterator[Problem]:
    """What was asked for and this machine can't do, beside what it lacks by name."""
    if spec.attention == "flash" and not (has_gpu and _is_installed("flash_attn")):
        yield Problem("attention", "is 'flash', which needs an NVIDIA GPU and the package flash-attn; leave it at auto")
    wanted = (
        ("method", spec.method == "qlora", "bitsandbytes"),
        ("optimizer", spec.optimizer.name == "adamw8bit", "bitsandbytes"),
        ("tensorboard", spec.tensorboard, "tensorboard"),
        ("wandb", spec.wandb is not None, "wandb"),
    )
    for field, is_wanted, package in wanted:
        if is_wanted and not _is_installed(package):
            yield Problem(field, f"needs the package {package}, which is not installed here; pip install {package}")


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _layer_faults(spec: TrainingSpec, model: LocalModel) -> Iterator[Problem]:
    """Of layers that are named; a process of its own lists what there is, which takes some seconds."""
    if isinstance(spec.lora.targets, str) or spec.method == "full_finetune":
        return
    try:
        layers = inspect_layers(model.path, rank=1)["layers"]
    except ModelUnusable as error:
        yield Problem("model_name", f"is unusable: {error}")
        return
    except EnvironmentUnfit:
        return  # said of the data
    known = {layer["name"].rpartition(".")[2] for layer in layers if layer["adapted"]}
    if unknown := sorted(set(spec.lora.targets) - known):
        there = ", ".join(sorted(known))
        yield Problem("lora.targets", f"has {', '.join(unknown)}, but {spec.model_name} has as linear layers: {there}")


def _context_faults(spec: TrainingSpec, model: LocalModel, look: DataLook) -> Iterator[Problem]:
    """Of the data that is learnt from, where it was tokenised; what the data has counts, not what it might."""
    lengths = look.told[0].get("lengths") if look.told else None
    if lengths is None or model.context_length is None:
        return
    longest = min(spec.seq_len, lengths["max"])
    if longest > model.context_length:
        made = f"{spec.model_name} was made for {model.context_length:,}; set it to {model.context_length}"
        yield Problem("seq_len", f"is {spec.seq_len:,}, and the data has {longest:,} tokens in a row, but {made}")
