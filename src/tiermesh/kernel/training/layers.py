"""What a model consists of, and what each method would train of it: read from its configuration, no weights loaded.

As a process, `python -m tiermesh.kernel.training.layers FOLDER [--rank R]` prints the report as JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

DEFAULT_RANK = 16
UNREADABLE = 3
"""Exit status when the folder holds no model that transformers knows; why is the last line of standard error."""


@dataclass(frozen=True, slots=True)
class LayerKind:
    """Layers of equal name (but for their number) and shape. `parameters` are those of all `count` together."""

    name: str
    kind: str
    shape: tuple[int, ...]
    count: int
    parameters: int
    adapted: bool


@dataclass(frozen=True, slots=True)
class MethodShare:
    """What a method trains."""

    method: str
    trained: int
    share: float


@dataclass(frozen=True, slots=True)
class LayerReport:
    """A model's layers in the order of its computation, each parameter counted once."""

    architecture: str
    blocks: int
    parameters: int
    rank: int
    layers: tuple[LayerKind, ...]
    methods: tuple[MethodShare, ...]


def linear_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """What `all-linear` means: every linear layer of a causal model with its full name, but the output layer."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            yield name, module


def report(folder: Path, rank: int = DEFAULT_RANK) -> LayerReport:
    """Of a model's folder; raises what transformers raises when it is none."""
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    adapted = {name for name, _ in linear_layers(model)}
    total = sum(parameter.numel() for parameter in model.parameters())
    low_rank = sum(rank * sum(module.weight.shape) for _, module in linear_layers(model))
    shares = (
        ("full_finetune", total, total),
        ("lora", low_rank, total + low_rank),
        ("qlora", low_rank, total + low_rank),
    )
    return LayerReport(
        architecture=type(model).__name__,
        blocks=config.get_text_config().num_hidden_layers,
        parameters=total,
        rank=rank,
        layers=tuple(_kinds(model, adapted)),
        methods=tuple(MethodShare(method, trained, trained / of) for method, trained, of in shares),
    )


def _kinds(model: nn.Module, adapted: set[str]) -> Iterator[LayerKind]:
    """Modules that have parameters of their own, those that differ by a number alone together."""
    seen: set[int] = set()
    found: dict[tuple[str, str, tuple[int, ...], bool], list[int]] = {}
    for name, module in model.named_modules():
        own = [one for one in module.parameters(recurse=False) if id(one) not in seen]
        seen.update(id(one) for one in own)
        if own:
            key = (re.sub(r"\.\d+\.", ".*.", name), type(module).__name__, tuple(own[0].shape), name in adapted)
            found.setdefault(key, []).append(sum(one.numel() for one in own))
    for (name, kind, shape, is_adapted), sizes in found.items():
        yield LayerKind(name, kind, shape, len(sizes), sum(sizes), is_adapted)


def main() -> None:
    """Print the report of a folder."""
    parser = argparse.ArgumentParser(prog="python -m tiermesh.kernel.training.layers", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rank", type=int, default=DEFAULT_RANK)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    try:
        found: Any = asdict(report(options.folder, options.rank))
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"{options.folder} holds no language model: {' '.join(str(error).split())[:300]}\n")
        sys.exit(UNREADABLE)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
