"""A training spec as one file of Python that needs torch, transformers and peft, and nothing of this project.

The script is the same for every spec but for its beginning: what it needs and what it does otherwise than a run of
ours, and the spec as a literal of Python. Whatever a spec names is written as `repr` writes it, so a name is never
code. What such a script can't do (plugins) is refused by name.
"""

from __future__ import annotations

import pprint
import textwrap
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from tiermesh.errors import InvalidSpec
from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_plugins import READER_FORMATS

OPTIMIZERS = ("adamw", "adamw8bit", "sgd")
SCHEDULERS = ("constant", "cosine", "linear")
WIDTH = 110
IMPORTS = """\
import argparse
import csv
import json
import math
import random
import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer
"""


def hf_script(spec: TrainingSpec) -> str:
    """The script's text. Raises `InvalidSpec` for what only a run of ours can do."""
    if cannot := list(_cannot(spec)):
        raise InvalidSpec(f"a script can't do this: {'; '.join(cannot)}", param=cannot[0].split(" ")[0])
    body = files("tiermesh.protocol").joinpath("hf_script_body.txt").read_text("utf-8")
    plain: dict[str, Any] = spec.model_dump(mode="json")
    literal = pprint.pformat(plain, width=WIDTH, sort_dicts=False)
    return f"{_header(spec)}\n{IMPORTS}\nSPEC = {literal}\n\n{body}"


def differences(spec: TrainingSpec) -> Iterator[str]:
    """What the script does otherwise than a run of ours with the same spec, a sentence each."""
    if spec.packing and spec.task != "preference":
        yield (
            "One record a row, filled up with padding; a run of ours packs several short records into a row, so there "
            "are fewer records in a step here, and more steps."
        )
    yield (
        "The same seed gives the same run of this script on the same machine, but another order of records, other new "
        "weights and another dropout than a run of ours: losses are alike, not equal."
    )
    if spec.eval_path is None and spec.held_out_fraction:
        yield "Records are held out by chance, not by their content: equal records may be on both sides."
    yield "A run that is stopped begins anew: checkpoints have weights only, and all of them are kept."
    if spec.precision == "auto":
        yield "bf16 is taken where a GPU has it; nothing is measured on a processor."
    if spec.checkpointing == "auto":
        yield "Activations are kept; nothing is made smaller when memory runs short."
    if spec.memory_limit is not None:
        yield "memory_limit is not kept to."
    yield "A step with NaN is left out, but nothing is rolled back after a jump of the loss."
    yield "A conversation whose template writes a turn otherwise once more follows is left out and named."
    left_out = {
        "compile": spec.compile,
        "tensorboard": spec.tensorboard,
        "wandb": spec.wandb is not None,
        "data.token_masking": spec.data.token_masking > 0,
        "data.fields.repeat": spec.data.fields.repeat is not None,
    }
    if named := [name for name, asked in left_out.items() if asked]:
        yield f"Left out: {', '.join(named)}."
    if ":" in spec.model_name:
        yield "The model's name is a mesh's own: give --model a folder, or ORG/NAME on the Hugging Face hub."


def _cannot(spec: TrainingSpec) -> Iterator[str]:
    if spec.optimizer.name not in OPTIMIZERS:
        yield f"optimizer is a plugin, {spec.optimizer.name!r}"
    if spec.scheduler.name not in SCHEDULERS:
        yield f"scheduler is a plugin, {spec.scheduler.name!r}"
    if spec.loss.name != "cross_entropy":
        yield f"loss is a plugin, {spec.loss.name!r}"
    if callbacks := [one.name for one in spec.callbacks if one.name != "log"]:
        yield f"callbacks has plugins, {', '.join(map(repr, callbacks))}"
    if spec.data.format not in READER_FORMATS:
        yield f"data.format is a plugin's, {spec.data.format!r}"


def _header(spec: TrainingSpec) -> str:
    packages = ["torch", "transformers>=4.56"]
    packages += ["peft"] * (spec.method != "full_finetune")
    packages += ["bitsandbytes"] * (spec.method == "qlora" or spec.optimizer.name == "adamw8bit")
    lines = [
        "#!/usr/bin/env python3",
        "# A standalone training script, written by Tiermesh from the spec below; it needs nothing of Tiermesh.",
        f"# It needs: pip install {' '.join(repr(one) if '>' in one else one for one in packages)}",
        "# Call it as: python train.py [--model M] [--data FILE] [--eval-data FILE] [--out FOLDER]",
        "#",
        "# What it does otherwise than Tiermesh's own training:",
    ]
    for sentence in differences(spec):
        lines += _wrapped(sentence)
    return "\n".join(lines) + "\n"


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, 112, initial_indent="# - ", subsequent_indent="#   ")
