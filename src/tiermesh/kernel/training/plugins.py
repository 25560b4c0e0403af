"""Optimizers, schedules, losses, callbacks and readers, built in or of other packages, through one door.

| kind | what is registered | what it gives, checked here before a run begins |
|---|---|---|
| optimizer | `f(groups, learning_rate, **options)` | a `torch.optim.Optimizer` over all the parameters of `groups` |
| scheduler | `f(steps, warmup_steps, **options)` | `step -> factor` of the learning rate; finite, not negative |
| loss | `f(**options)` | `(logits_CV, labels_C) -> losses_C`, differentiable; one finite number for each target token |
| callback | `f(**options)` | `event -> None`, called with each event of the run; dropped, with a word, when it raises |
| reader | `f(path)` | an iterable of records, each a mapping of fields |

Whatever is wrong with one ends in `PluginFailed`, which names it and the package that it came from.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import torch

from tiermesh.errors import BadSpec, PluginFailed
from tiermesh.kernel.training.failures import is_out_of_memory
from tiermesh.protocol.training import Named, TrainingSpec
from tiermesh.protocol.training_events import TrainingEvent
from tiermesh.protocol.training_plugins import READER_FORMATS, Kind, installed, names, origin

log = logging.getLogger(__name__)

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Listener = Callable[[TrainingEvent], None]
Reader = Callable[[Path], Iterable[object]]

CHECKPOINTING = "torch.utils.checkpoint"
TRIED_TARGETS, TRIED_VOCABULARY = 3, 5
"""A loss is tried on random scores of this size."""


def make_optimizer(choice: Named, groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
    """`groups` as torch's optimizers take them."""
    plugin = _Plugin.named("optimizer", choice.name)
    given = [parameter for group in groups for parameter in group["params"]]
    made = plugin.call(groups, learning_rate, **choice.options)
    if not isinstance(made, torch.optim.Optimizer):
        raise plugin.failed(f"gave {_kind_of(made)} instead of a torch.optim.Optimizer")
    held = {id(parameter) for group in made.param_groups for parameter in group["params"]}
    if missing := sum(id(parameter) not in held for parameter in given):
        raise plugin.failed(f"left out {missing} of {len(given)} parameters")
    return made


def make_schedule(choice: Named, steps: int, warmup_steps: int) -> Callable[[int], float]:
    """From a step, counted from 0, to the factor of the learning rate."""
    plugin = _Plugin.named("scheduler", choice.name)
    made = plugin.call(steps, warmup_steps, **choice.options)
    schedule: Callable[[int], float] = plugin.guarded(made)
    for step in sorted({0, warmup_steps, steps // 2, max(0, steps - 1)}):
        factor = schedule(step)
        if not isinstance(factor, int | float) or not math.isfinite(factor) or factor < 0:
            raise plugin.failed(f"gave {factor!r} for step {step} instead of a factor of the learning rate")
    return schedule


def make_loss(choice: Named) -> Loss:
    """For scores and labels of some target tokens, a number for each."""
    plugin = _Plugin.named("loss", choice.name)
    loss: Loss = plugin.guarded(plugin.call(**choice.options))
    logits_CV = torch.linspace(-1.0, 1.0, TRIED_TARGETS * TRIED_VOCABULARY).view(TRIED_TARGETS, TRIED_VOCABULARY)
    logits_CV.requires_grad_()
    losses = loss(logits_CV, torch.arange(TRIED_TARGETS))
    if not isinstance(losses, torch.Tensor) or losses.shape != (TRIED_TARGETS,):
        shape = list(losses.shape) if isinstance(losses, torch.Tensor) else _kind_of(losses)
        raise plugin.failed(f"gave {shape} for {TRIED_TARGETS} targets instead of a number for each")
    if not losses.requires_grad or not bool(torch.isfinite(losses).all()):
        raise plugin.failed("gave losses that are not finite, or have no gradient")
    return loss


def make_callback(choice: Named) -> Listener:
    """For `Events.listen`."""
    plugin = _Plugin.named("callback", choice.name)
    made: Listener = plugin.guarded(plugin.call(**choice.options))
    return made


def readers_for(spec: TrainingSpec) -> dict[str, Reader]:
    """The reader plugin that the spec names, by its name; empty when it names a format that is built in."""
    if spec.data.format in READER_FORMATS:
        return {}
    plugin = _Plugin.named("reader", spec.data.format)
    return {plugin.name: plugin.reader()}


def cross_entropy() -> Loss:
    """The usual loss. By this name the run takes its own way to the same numbers, without keeping the logits."""
    return lambda logits_CV, labels_C: torch.nn.functional.cross_entropy(logits_CV, labels_C, reduction="none")


def log_events(*, names: Iterable[str] = ()) -> Listener:
    """A callback that writes events into the worker's log: those of `names`, or all but the steps."""
    wanted = frozenset(names)

    def listen(event: TrainingEvent) -> None:
        if event.event in wanted if wanted else event.event != "step":
            log.info("%s", event.model_dump_json(exclude={"at"}))

    return listen


class _Plugin:
    """One that was found and loaded; what it raises is told under its name."""

    def __init__(self, kind: Kind, entry: EntryPoint) -> None:
        self.kind = kind
        self.name = entry.name
        self._origin = origin(entry)
        try:
            self._made: Any = entry.load()
        except Exception as error:
            raise self.failed(f"can't be loaded: {_said(error)}") from error
        if not callable(self._made):
            raise self.failed(f"is {_kind_of(self._made)}, which can't be called")

    @classmethod
    def named(cls, kind: Kind, name: str) -> _Plugin:
        """Raises `BadSpec` when nothing has this name, `PluginFailed` when more than one has it or it is broken."""
        match installed(kind).get(name, []):
            case []:
                raise BadSpec(f"there is no {kind} {name!r} on this machine; there are {', '.join(names(kind))}")
            case [entry]:
                return cls(kind, entry)
            case several:
                raise PluginFailed(f"{kind} {name!r} is of both {' and '.join(map(origin, several))}; remove one")

    def failed(self, what: str) -> PluginFailed:
        return PluginFailed(f"the {self.kind} {self.name!r} of {self._origin} {what}")

    def call(self, *given: object, **options: object) -> Any:
        """What was registered, with the options that the spec gives it."""
        self._check_options(given, options)
        return self._run(self._made, *given, **options)

    def guarded(self, made: object) -> Any:
        """A callable that it gave, whose mistakes bear its name."""
        if not callable(made):
            raise self.failed(f"gave {_kind_of(made)}, which can't be called")
        return lambda *given: self._run(made, *given)

    def reader(self) -> Reader:
        """Records are asked for one after the other, so a mistake may come with any of them."""

        def read(path: Path) -> Iterator[object]:
            records = self._run(iter, self.call(path))
            while True:
                record = self._run(next, records, _END)
                if record is _END:
                    return
                yield record

        return read

    def _run(self, what: Callable[..., Any], *given: object, **options: object) -> Any:
        try:
            return what(*given, **options)
        except Exception as error:
            if is_out_of_memory(error) or type(error).__module__ == CHECKPOINTING:
                raise  # not its fault: the run knows what to do, torch ends a recomputation early by an exception
            raise self.failed(f"raised {_said(error)}") from error

    def _check_options(self, given: tuple[object, ...], options: Mapping[str, object]) -> None:
        try:
            signature = inspect.signature(self._made)
        except ValueError:  # written in C, and says nothing of itself
            return
        try:
            signature.bind(*given, **options)
        except TypeError as error:
            taken = ", ".join(list(signature.parameters)[len(given) :]) or "none"
            raise self.failed(f"does not take these options: {error} (it takes {taken})") from None


_END = object()


def _kind_of(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
