"""What a run is made of at the end of a step, taken out and put back so that it goes on as if nothing had happened.

A run is its trainable weights (the fp32 masters), the optimizer's state, every random number generator, and what the
loop counts (position in the data, skipped ranges, detector, relief). On one machine, with as many threads and the
same versions, a resumed run is equal to an undisturbed one to the last bit. Where something else has changed,
`differences` says so, and what changes the meaning of a position or the shape of a tensor is refused.
"""

from __future__ import annotations

import platform
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from tiermesh.errors import CheckpointUnusable
from tiermesh.kernel.training.checkpoints import Json, Snapshot
from tiermesh.protocol.training_resume import BATCH, FIXED, effective_batch

WEIGHT, OPTIMIZER, RANDOM = "weight/", "optimizer/", "random/"
"""How the names of the three kinds of tensors begin."""

LIBRARIES = ("tiermesh", "torch", "transformers", "peft", "tokenizers", "bitsandbytes", "numpy")
"""Whose versions can change a result."""

FREE = frozenset(
    {"version", "model_name", "dataset_path", "target_gpu", "memory_limit", "guard", "callbacks", "early_stop"}
    | {"eval_interval", "samples", "sample_tokens", "save_interval", "keep_last", "keep_best", "merge"}
    | {"log_interval", "tensorboard", "wandb"}
)
"""Fields that change no weight. Of model and data the digests count, not where they lie. All others: allowed, told."""
ROUNDING = frozenset({*BATCH, "compile"})
"""Fields by which sums are made in another order; and with dropout, by those of the batch, other inputs are dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a run's numbers depend on besides its state. `spec` is the validated one as JSON."""

    spec: Mapping[str, Json]
    model_digest: str
    data_digest: str
    packer: str
    """Version of the code that laid the records into rows."""
    threads: int
    device: str
    processor: str
    """Name and instruction set: they choose the kernels that add up in another order."""
    versions: Mapping[str, str]

    @classmethod
    def here(
        cls, spec: Mapping[str, Json], *, model_digest: str, data_digest: str, packer: str, device: str
    ) -> Conditions:
        """Those of this process."""
        capability = torch.backends.cpu.get_cpu_capability()
        return cls(
            spec=spec,
            model_digest=model_digest,
            data_digest=data_digest,
            packer=packer,
            threads=torch.get_num_threads(),
            device=device if device == "cpu" else torch.cuda.get_device_name(device),
            processor=f"{_processor_name()}, {capability}",
            versions={name: told for name in LIBRARIES if (told := installed(name))} | {"python": _python()},
        )

    def to_dict(self) -> dict[str, Json]:
        """For a snapshot's facts."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, told: Mapping[str, Json]) -> Conditions:
        """The inverse; raises `KeyError` where something is missing."""
        return cls(**{name: told[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True, slots=True)
class Randomness:
    """Every random number generator as it was: Python's, numpy's, torch's, the GPUs'. Take it before a step that may
    be dropped and put it back when it was, or the step that follows is another one."""

    facts: Json
    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def now(cls) -> Randomness:
        """All of them; some 10 KB."""
        of_numpy = np.random.get_state(legacy=False)
        assert isinstance(of_numpy, dict)
        tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(of_numpy["state"]["key"].copy())}
        if torch.cuda.is_available():
            tensors |= {f"cuda.{index}": told for index, told in enumerate(torch.cuda.get_rng_state_all())}
        kind, words, gauss = random.getstate()
        numpy = {
            "bit_generator": of_numpy["bit_generator"],
            "pos": int(of_numpy["state"]["pos"]),
            "has_gauss": int(of_numpy["has_gauss"]),
            "gauss": float(of_numpy["gauss"]),
        }
        return cls({"python": [kind, list(words), gauss], "numpy": numpy}, tensors)

    def put_back(self) -> None:
        """On a machine with other GPUs those keep what they have."""
        kind, words, gauss = self.facts["python"]
        random.setstate((kind, tuple(words), gauss))
        numpy = self.facts["numpy"]
        key = self.tensors["numpy"].numpy()
        np.random.set_state({**numpy, "state": {"key": key, "pos": numpy["pos"]}})
        torch.set_rng_state(self.tensors["torch"])
        of_gpus = [told for name, told in sorted(self.tensors.items()) if name.startswith("cuda.")]
        if torch.cuda.is_available() and len(of_gpus) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(of_gpus)


def capture(
    trainables: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    position: int,
    loss: float | None,
    facts: Mapping[str, Json],
    copy: bool = True,
) -> Snapshot:
    """Everything as it is now. With `copy` later steps don't reach it; without, use it before the next step."""
    tensors = {WEIGHT + name: tensor.detach() for name, tensor in trainables.items()}
    optimizer_facts = _taken_apart(optimizer.state_dict(), OPTIMIZER, tensors)
    randomness = Randomness.now()
    tensors |= {RANDOM + name: tensor for name, tensor in randomness.tensors.items()}
    if copy:
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    return Snapshot(
        step=step,
        position=position,
        loss=loss,
        tensors=tensors,
        facts={**facts, "optimizer": optimizer_facts, "random": randomness.facts},
    )


def restore(snapshot: Snapshot, trainables: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Put it all back, in place; the loop's own facts are the caller's. Raises `CheckpointUnusable` before anything
    is changed when the weights are not this run's."""
    saved = {n.removeprefix(WEIGHT): t for n, t in snapshot.tensors.items() if n.startswith(WEIGHT)}
    _check_fit(saved, trainables)
    with torch.no_grad():
        for name, tensor in trainables.items():
            tensor.copy_(saved[name])
    state = _put_together(snapshot.facts["optimizer"], snapshot.tensors)
    optimizer.load_state_dict(state)
    _keep_dtypes(optimizer, state)
    generators = {n.removeprefix(RANDOM): t for n, t in snapshot.tensors.items() if n.startswith(RANDOM)}
    Randomness(snapshot.facts["random"], generators).put_back()


def differences(then: Conditions, now: Conditions) -> list[str]:
    """What a run that began under `then` may show under `now`, as sentences; none: equal to the last bit.

    Raises `CheckpointUnusable` where it can't go on at all.
    """
    refused = list(_refusals(then, now))
    if refused:
        raise CheckpointUnusable(
            f"this run can't go on as another one ({'; '.join(refused)}): undo that, or start afresh (--fresh)"
        )
    return list(_told(then, now))


def installed(name: str) -> str | None:
    """A library's version; None when it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _refusals(then: Conditions, now: Conditions) -> Iterator[str]:
    if then.model_digest != now.model_digest:
        yield "the model's weights are not the ones it began with"
    if then.data_digest != now.data_digest:
        yield "the data is not what it began with"
    if then.packer != now.packer:
        yield f"records are laid into rows in another way ({then.packer}, now {now.packer})"
    for name in _changed(then.spec, now.spec):
        if name in FIXED:
            yield f"{name} was {_short(then.spec.get(name))} and is {_short(now.spec.get(name))}"
    if effective_batch(then.spec) != effective_batch(now.spec):
        yield f"the effective batch was {effective_batch(then.spec)} and is {effective_batch(now.spec)}"


def _told(then: Conditions, now: Conditions) -> Iterator[str]:
    last_bits = "losses may differ in their last digits"
    if then.threads != now.threads:
        yield f"{then.threads} threads then, {now.threads} now: {last_bits}"
    if then.processor != now.processor or then.device != now.device:
        yield f"another processor ({then.device} {then.processor}, now {now.device} {now.processor}): {last_bits}"
    for name in sorted({*then.versions, *now.versions}):
        before, after = then.versions.get(name), now.versions.get(name)
        if before != after:
            yield f"{name} {before or 'absent'} then, {after or 'absent'} now: {last_bits}"
    for name in _changed(then.spec, now.spec):
        if name not in FIXED | FREE:
            effect = "the run changes from here"
            if name in BATCH and _drops(now.spec):
                effect = "other inputs are dropped (lora.dropout) from here"
            elif name in ROUNDING:
                effect = last_bits
            yield f"{name} was {_short(then.spec.get(name))}, is {_short(now.spec.get(name))}: {effect}"


def _drops(spec: Mapping[str, Json]) -> bool:
    return spec.get("method") != "full_finetune" and spec.get("lora", {}).get("dropout", 0) > 0


def _changed(then: Mapping[str, Json], now: Mapping[str, Json]) -> list[str]:
    return [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]


def _check_fit(saved: Mapping[str, torch.Tensor], trainables: Mapping[str, torch.Tensor]) -> None:
    if saved.keys() != trainables.keys():
        odd = sorted(saved.keys() ^ trainables.keys())
        raise CheckpointUnusable(f"the checkpoint is of other weights: {len(odd)} differ, {odd[0]} is one of them")
    for name, tensor in trainables.items():
        if saved[name].shape != tensor.shape or saved[name].dtype != tensor.dtype:
            was, wanted = (f"{tuple(t.shape)} {t.dtype}" for t in (saved[name], tensor))
            raise CheckpointUnusable(f"the checkpoint is of other weights: {name} was {was} and is {wanted}")


def _keep_dtypes(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """torch casts a state to its parameter's type when it loads it; what was saved wider stays so."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, saved in state["state"].items():
        loaded = optimizer.state[parameters[index]]
        for name, value in saved.items():
            if isinstance(value, torch.Tensor) and loaded[name].dtype != value.dtype:
                loaded[name] = value.to(loaded[name].device)


def _taken_apart(tree: object, path: str, tensors: dict[str, torch.Tensor]) -> Json:
    """`tree` as JSON, its tensors put into `tensors` under their path. Raises `TypeError` for what is neither."""
    match tree:
        case None | bool() | int() | float() | str():
            return tree
        case torch.Tensor():
            name = path.removesuffix("/")
            tensors[name] = tree.detach()
            return {"tensor": name}
        case dict():
            return {"map": [[key, _taken_apart(value, f"{path}{key}/", tensors)] for key, value in tree.items()]}
        case list() | tuple():
            items = [_taken_apart(value, f"{path}{index}/", tensors) for index, value in enumerate(tree)]
            return {"tuple": items} if isinstance(tree, tuple) else items
    raise TypeError(f"a {type(tree).__name__} at {path} of the optimizer's state can't be saved")


def _put_together(told: Json, tensors: Mapping[str, torch.Tensor]) -> Any:
    match told:
        case {"tensor": name}:
            return tensors[name].clone()  # an optimizer takes a tensor as it is and would write into the snapshot
        case {"map": pairs}:
            return {key: _put_together(value, tensors) for key, value in pairs}
        case {"tuple": items}:
            return tuple(_put_together(item, tensors) for item in items)
        case list():
            return [_put_together(item, tensors) for item in told]
    return told


def _short(value: Json) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _python() -> str:
    return platform.python_version()


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
