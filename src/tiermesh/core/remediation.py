"""What to change after a training attempt failed. Pure: typed failures decide, never the words of a message.

Retries are counted in one place: `tried` holds the specs of the job's attempts that were ended by their own failure, in
order; the last one has just failed. (An attempt whose node died goes on elsewhere with the same spec; it is no retry,
and not in `tried`.)

| failure                                     | the next attempt has                                            |
|---------------------------------------------|-----------------------------------------------------------------|
| out of memory                               | half the micro-batch, twice the accumulation: the effective     |
|                                             | batch holds; at 1: full_finetune > lora > qlora                 |
| not finite, diverged; final loss not finite | half the learning rate; never another method                    |
| or above the first                          |                                                                 |
| held-out loss far above the training loss,  | half the epochs (or steps); at 1: half the learning rate        |
| training text told word for word            |                                                                 |
| canary refused, unguarded or silent         | half the learning rate: the model was bent too far              |
| final loss too high                         | twice the epochs, which is estimated and gated again; nothing   |
|                                             | where a person bounded the steps                                |
| the machine or its software is unfit        | nothing: it would fail again                                    |
| the spec, the data, the model or a plugin   | nothing: the same input fails again                             |
| anything else                               | the same spec, once                                             |

A retry that would change nothing is not made, nor one after `max_retries`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

MAX_RETRIES = 3
LOWEST_RATE = 1e-8
"""Below it nothing is learned, whatever the precision."""
MOST_EPOCHS = 10_000
"""As the spec allows."""

DEFAULTS: Mapping[str, Any] = {
    "method": "lora",
    "num_epochs": 3,
    "max_steps": None,
    "micro_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 5e-5,
}
"""Of the training spec, for specs as plain JSON that leave out what is not said."""

SMALLER_METHOD: Mapping[str, str] = {"full_finetune": "lora", "lora": "qlora"}

Treatment = Literal["memory", "rate", "fewer_epochs", "more_epochs", "none", "once"]
TREATMENTS: Mapping[str, Treatment] = {
    "out_of_memory": "memory",
    "non_finite": "rate",
    "diverged": "rate",
    "loss_not_finite": "rate",
    "loss_rose": "rate",
    "gap_too_wide": "fewer_epochs",
    "canary_leaked": "fewer_epochs",
    "canary_refused": "rate",
    "canary_unguarded": "rate",
    "canary_silent": "rate",
    "loss_too_high": "more_epochs",
    "environment_unfit": "none",
    "disk_full": "none",
    "overheated": "none",
    "bad_data": "none",
    "bad_spec": "none",
    "model_unusable": "none",
    "plugin_failed": "none",
}
"""By the kind of failure: those of a run, and those of `core.evaluation`. What is not here: once more, unchanged."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """Try this spec. `costs_more`: it takes longer than the one before, so estimate and gate are asked again."""

    spec: Mapping[str, Any]
    why: str
    costs_more: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """No retry will be made."""

    why: str


def remedy(
    failure: str,
    tried: Sequence[Mapping[str, Any]],
    *,
    max_retries: int = MAX_RETRIES,
    reached: int | None = None,
    steps: int | None = None,
) -> Remedy | Stop:
    """What follows this failure of `tried[-1]`.

    `reached` is the micro-batch that a run had come down to by itself when memory failed it all the same; None: the
    spec's own. `steps` is how many the whole run had, where that is known.
    """
    assert tried, "something was tried, or it could not have failed"
    retries = len(tried) - 1
    if retries >= max_retries:
        return Stop(f"{retries} retries were made, and no more than {max_retries} are" if retries else "no retries")
    spec = tried[-1]
    match TREATMENTS.get(failure, "once"):
        case "memory":
            return _less_memory(spec, reached)
        case "rate":
            return _half_the_rate(spec)
        case "fewer_epochs":
            return _fewer_epochs(spec, steps) or _half_the_rate(spec)
        case "more_epochs":
            return _more_epochs(spec)
        case "none":
            return Stop("it would fail again in the same way")
        case "once":
            return _once_more(tried)


def optimize(spec: Mapping[str, Any], steps: int | None = None) -> Remedy | None:
    """One cheaper spec, with as little lost as can be: an adapter instead of all weights, else half the epochs, else
    half the steps. `steps` is the estimate's count, where there is one. None: nothing is left to spare."""
    if _get(spec, "method") == "full_finetune":
        return Remedy({**spec, "method": "lora"}, "an adapter (lora) is trained instead of all weights")
    if (fewer := _fewer_epochs(spec, steps)) is not None:
        return fewer
    if steps is None or steps < 2 or _get(spec, "max_steps") is not None:
        return None
    return Remedy({**spec, "max_steps": steps // 2}, f"{steps // 2} steps instead of {steps}")


def _less_memory(spec: Mapping[str, Any], reached: int | None) -> Remedy | Stop:
    given, accumulation = _get(spec, "micro_batch_size"), _get(spec, "gradient_accumulation_steps")
    effective = given * accumulation
    now = given if reached is None else min(given, reached)
    if now > 1:
        # Twice the accumulation where the size is even; else the next size that divides the effective batch.
        half = next(rows for rows in range(now // 2, 0, -1) if effective % rows == 0)
        less = {"micro_batch_size": half, "gradient_accumulation_steps": effective // half}
        return Remedy({**spec, **less}, f"out of memory: a micro-batch of {half} instead of {now}")
    method = _get(spec, "method")
    if (smaller := SMALLER_METHOD.get(method)) is None:
        return Stop(f"out of memory with a micro-batch of 1 and {method}: nothing smaller is left")
    least = {"micro_batch_size": 1, "gradient_accumulation_steps": effective, "method": smaller}
    return Remedy({**spec, **least}, f"out of memory with a micro-batch of 1: {smaller} instead of {method}")


def _half_the_rate(spec: Mapping[str, Any]) -> Remedy | Stop:
    rate = _get(spec, "learning_rate")
    if rate / 2 < LOWEST_RATE:
        return Stop(f"a learning rate below {rate:g} learns nothing")
    return Remedy({**spec, "learning_rate": rate / 2}, f"learning rate {rate / 2:g} instead of {rate:g}")


def _fewer_epochs(spec: Mapping[str, Any], steps: int | None) -> Remedy | None:
    """Half of what bounds the run. None: it is one epoch, or one step."""
    most, epochs = _get(spec, "max_steps"), _get(spec, "num_epochs")
    if most is not None:
        # The epochs may be over before: half of what the run really had.
        had = most if steps is None else min(most, steps)
        return Remedy({**spec, "max_steps": had // 2}, f"{had // 2} steps instead of {had}") if had > 1 else None
    if epochs > 1:
        return Remedy({**spec, "num_epochs": epochs // 2}, f"{epochs // 2} epochs instead of {epochs}")
    return None


def _more_epochs(spec: Mapping[str, Any]) -> Remedy | Stop:
    steps, epochs = _get(spec, "max_steps"), _get(spec, "num_epochs")
    if steps is not None:
        return Stop(f"max_steps ({steps}) allows no more")
    if epochs >= MOST_EPOCHS:
        return Stop(f"{epochs} epochs are as many as there may be")
    more = min(2 * epochs, MOST_EPOCHS)
    return Remedy({**spec, "num_epochs": more}, f"{more} epochs instead of {epochs}", costs_more=True)


def _once_more(tried: Sequence[Mapping[str, Any]]) -> Remedy | Stop:
    if any(before == after for before, after in pairwise(tried)):
        return Stop("it was tried once more unchanged already")
    return Remedy(tried[-1], "once more, unchanged")


def _get(spec: Mapping[str, Any], name: str) -> Any:
    return spec.get(name, DEFAULTS[name])
