"""Low-rank adapters beside one base model (Hu et al. 2021), several of them in one batch.

The base is computed for all rows at once. What an adapter adds is computed for its own rows only, so a row without one
costs nothing, and neither does an adapter that nobody uses now. Adapters come and go while the model computes for
others: `fit` reads and checks in any thread and changes nothing, `install` and `remove` are instant.

Legend: T packed rows, I and O a layer's inputs and outputs, R the rank.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from tiermesh.errors import InvalidInput
from tiermesh.kernel.inference.linear import Sibling
from tiermesh.protocol.serving import read_origin

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft puts before the name of a layer."""

WITHOUT_EFFECT = frozenset(
    {"auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out"}
    | {"inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_version"}
    | {"qalora_group_size", "revision", "target_modules", "task_type"}
)
"""Settings of training, or of where the weights apply, which the names of the weights say as well."""
INITIALISED_ON_A_WHOLE_BASE = (None, True, False, "gaussian", "orthogonal", "eva")
"""Other ways to begin change the base model's weights too, which then are not those that are loaded here."""
KNOWN = WITHOUT_EFFECT | {"peft_type", "r", "lora_alpha", "use_rslora", "bias", "init_lora_weights"}


class InvalidAdapter(InvalidInput):
    """A folder that holds no adapter, one of a kind that is not served, or one of another model."""

    type = "invalid_adapter"


class LowRank(NamedTuple):
    """What is added to one layer: `x_TI @ down_IR @ up_RO`; the adapter's scale is in `up_RO`.

    fp32 beside any base: more exact, and for the few rows of a step of generation four times as fast as bf16, whose
    products cost 20 us each on a CPU however small they are.
    """

    down_IR: torch.Tensor
    up_RO: torch.Tensor


Adapter = Mapping[str, LowRank]
"""By the name of the layer in the base model."""


class Place(NamedTuple):
    """A layer that is computed: where it hangs, and which of its outputs are meant, of how many."""

    parent: nn.Module
    child: str
    first: int
    width: int


Fitted = tuple[tuple[Place, LowRank], ...]
"""An adapter for the layers of one model as they are computed: what was joined is joined here too."""


@dataclass(slots=True)
class Rows:
    """Which rows of the step that is computed next belong to which adapter. One object, shared by all layers."""

    by_adapter: dict[str, slice | torch.Tensor]

    def __init__(self) -> None:
        self.by_adapter = {}

    def set(self, rows: Mapping[str, torch.Tensor]) -> None:
        """Called before every forward; row numbers are distinct, ascending and on the model's device."""
        self.by_adapter = {name: _as_slice(rows_T) for name, rows_T in rows.items() if len(rows_T)}


class LoraLinear(nn.Module):
    """A linear layer of the base, of whatever make, and what the adapters add to it. Input is `[..., I]`, T rows."""

    def __init__(self, base: nn.Module, rows: Rows) -> None:
        super().__init__()
        self.base = base
        self.adapters: dict[str, LowRank] = {}
        self._rows = rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base's output, to which each adapter has added its part in its rows."""
        output: torch.Tensor = self.base(x)
        for name, rows in self._rows.by_adapter.items():
            if (low_rank := self.adapters.get(name)) is not None:
                _add(output.view(-1, output.shape[-1]), rows, x.reshape(-1, x.shape[-1]), low_rank)
        return output


def fit(model: Any, folder: Path, base_digest: str = "") -> Fitted:
    """Read an adapter for this causal language model, of that digest; "" is unknown. Changes nothing.

    The model's layers may have been replaced by faster ones already, which they must not be afterwards. Raises
    `InvalidAdapter`.
    """
    _demand_base(folder, base_digest)
    parts: defaultdict[tuple[nn.Module, str], list[tuple[Place, LowRank]]] = defaultdict(list)
    for name, low_rank in read_adapter(folder).items():
        place = _place(model, name, low_rank, folder)
        parts[place.parent, place.child].append((place, LowRank(*(part.to(model.device) for part in low_rank))))
    return tuple((found[0][0], _side_by_side(found)) for found in parts.values())


def install(rows: Rows, adapter: str, fitted: Fitted) -> None:
    """From the next forward on, `rows` may select it by this name, which nothing had before."""
    for place, low_rank in fitted:
        layer = getattr(place.parent, place.child)
        if not isinstance(layer, LoraLinear):
            layer = LoraLinear(layer, rows)
            place.parent.set_submodule(place.child, layer)
        layer.adapters[adapter] = low_rank


def remove(model: nn.Module, adapter: str) -> None:
    """Forget it; no forward may ask for it any more."""
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.adapters.pop(adapter, None)


def attach(model: Any, rows: Rows, adapter: str, folder: Path, base_digest: str = "") -> None:
    """Fit and install. Raises `InvalidAdapter`, and then the model is as it was."""
    install(rows, adapter, fit(model, folder, base_digest))


def read_adapter(folder: Path) -> Adapter:
    """Read what peft saved; raises `InvalidAdapter` for anything but plain LoRA on linear layers."""
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise InvalidAdapter(f"{folder} holds no LoRA adapter: there is no {file}")
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
        tensors = load_file(folder / WEIGHTS_FILE)
    except Exception as error:
        raise InvalidAdapter(f"the adapter in {folder} can't be read: {error}") from error
    if not isinstance(config, dict):
        raise InvalidAdapter(f"{folder / CONFIG_FILE} must be an object")
    scale = _scale(config, folder)
    adapter = {
        name: LowRank(down_RI.T.float().contiguous(), (up_OR.T.float() * scale).contiguous())
        for name, down_RI, up_OR in _pairs(tensors, config["r"], folder)
    }
    if not adapter:
        raise InvalidAdapter(f"the adapter in {folder} has no weights")
    return adapter


def _as_slice(rows_T: torch.Tensor) -> slice | torch.Tensor:
    """Neighbouring rows are taken without a copy."""
    first, last = int(rows_T[0]), int(rows_T[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows_T) else rows_T


def _add(output_TO: torch.Tensor, rows: slice | torch.Tensor, x_TI: torch.Tensor, low_rank: LowRank) -> None:
    if isinstance(rows, slice):
        output_TO[rows] += _product(x_TI[rows], low_rank)
    else:
        # index_add_ does the same, several times as slowly.
        added_TO = _product(x_TI.index_select(0, rows), low_rank)
        output_TO.index_copy_(0, rows, output_TO.index_select(0, rows).add_(added_TO))


def _product(x_TI: torch.Tensor, low_rank: LowRank) -> torch.Tensor:
    return (x_TI.float() @ low_rank.down_IR @ low_rank.up_RO).to(x_TI.dtype)


def _scale(config: dict[str, Any], folder: Path) -> float:
    """What the product is multiplied by. Refuses, by its name, every setting that would change the result."""
    if config.get("peft_type") != "LORA":
        raise InvalidAdapter(f"the adapter in {folder} is {config.get('peft_type')}: only LORA is served")
    refused = [name for name, value in config.items() if name not in KNOWN and value]
    refused += ["bias"] if config.get("bias", "none") != "none" else []
    refused += ["init_lora_weights"] if config.get("init_lora_weights") not in INITIALISED_ON_A_WHOLE_BASE else []
    if refused:
        settings = ", ".join(f"{name}={config[name]!r}" for name in sorted(refused))
        raise InvalidAdapter(f"the adapter in {folder} needs what is not served: {settings}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        raise InvalidAdapter(f"{folder / CONFIG_FILE}: r and lora_alpha must be numbers, and r at least 1")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pairs(
    tensors: dict[str, torch.Tensor], rank: int, folder: Path
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Layers' names, and both of their matrices as they are stored: [R, I] and [O, R]."""
    for key, tensor in tensors.items():
        name, _, part = key.removeprefix(PREFIX).rpartition(".lora_")
        down, up = (tensors.get(f"{PREFIX}{name}.lora_{letter}.weight") for letter in "AB")
        if not key.startswith(PREFIX) or part not in ("A.weight", "B.weight") or down is None or up is None:
            raise InvalidAdapter(f"the adapter in {folder} has weights of another kind: {key}")
        if tensor.dim() != 2 or tensor.shape[0 if part[0] == "A" else 1] != rank:
            raise InvalidAdapter(f"the adapter in {folder} says r={rank}, and {key} is {tuple(tensor.shape)}")
        if part == "A.weight":
            yield name, down, up


def _demand_base(folder: Path, base_digest: str) -> None:
    """Weights that an adapter was not trained beside make it answer nonsense, without any error."""
    origin = read_origin(folder)
    if origin is not None and origin.base_digest and base_digest and origin.base_digest != base_digest:
        raise InvalidAdapter(
            f"the adapter in {folder} was trained on {origin.base_model} with the digest {origin.base_digest}, and the "
            f"model here has {base_digest}"
        )


def _place(model: Any, name: str, low_rank: LowRank, folder: Path) -> Place:
    """Where the layer of this name is computed, which must be linear and of the adapter's size."""
    try:
        layer = model.get_submodule(name)
    except AttributeError as error:
        raise InvalidAdapter(f"the adapter in {folder} is for another model: this one has no {name}") from error
    if layer is model.get_output_embeddings():
        # It is computed for the last rows alone, whose numbers are others.
        raise InvalidAdapter(f"the adapter in {folder} changes the output layer {name}, which is not served")
    _demand_fit(name, layer, low_rank, folder)
    if isinstance(layer, Sibling):
        return Place(layer.family[0], "whole", layer.first, sum(layer.family[0].sizes))
    parent, _, child = name.rpartition(".")
    return Place(model.get_submodule(parent), child, 0, low_rank.up_RO.shape[1])


def _demand_fit(name: str, layer: Any, low_rank: LowRank, folder: Path) -> None:
    """The shapes must be those of the layer, which must be linear."""
    linear = layer.base if isinstance(layer, LoraLinear) else layer
    if isinstance(linear, Conv1D):
        expected = tuple(linear.weight.shape)
    else:
        expected = (getattr(linear, "in_features", None), getattr(linear, "out_features", None))
    got = (low_rank.down_IR.shape[0], low_rank.up_RO.shape[1])
    if expected != got:
        raise InvalidAdapter(f"the adapter in {folder} is for another model: {name} is {expected} here and {got} there")


def _side_by_side(parts: Sequence[tuple[Place, LowRank]]) -> LowRank:
    """What is added to a layer, of what is added to parts of its outputs: their ranks follow one another.

    One product of a larger rank, most of it zeros, takes less time than several: for few rows calls are what costs.
    """
    (place, first), *others = parts
    if not others and place.width == first.up_RO.shape[1]:
        return first
    downs = [low_rank.down_IR for _, low_rank in parts]
    down_IR = torch.cat(downs, dim=1)
    up_RO = torch.zeros(down_IR.shape[1], place.width, dtype=down_IR.dtype, device=down_IR.device)
    at = 0
    for part, low_rank in parts:
        ranks, outputs = low_rank.up_RO.shape
        up_RO[at : at + ranks, part.first : part.first + outputs] = low_rank.up_RO
        at += ranks
    return LowRank(down_IR, up_RO)
