"""A run's data: from the file that a spec names to the rows that are trained on and those that are held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tiermesh.kernel.training.data.batches import PackedSource
from tiermesh.kernel.training.data.corpus import Corpus
from tiermesh.kernel.training.data.plan import plan_rows
from tiermesh.kernel.training.data.records import BadRecord, content_hash, understood
from tiermesh.kernel.training.data.tokens import Coder, Document
from tiermesh.protocol.training import TrainingSpec

OnProgress = Callable[[int, int], None]
"""(bytes read, bytes in all) while a file is tokenised."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """`held_out` None: nothing is. `report` is JSON for the run's events."""

    train: PackedSource
    held_out: PackedSource | None
    report: dict[str, Any]


def open_dataset(
    spec: TrainingSpec,
    data: Path,
    tokenizer: Any,
    *,
    cache: Path,
    eval_data: Path | None = None,
    packing: bool = True,
    processes: int = 1,
    on_progress: OnProgress = lambda done, total: None,
) -> Dataset:
    """Read, tokenise (once) and plan. Raises `BadData`. `packing` False: the model can't keep documents apart."""
    coder = Coder(tokenizer, template=spec.data.template, train_on=spec.data.train_on)
    records = [understood(msgspec.json.decode(line), spec.data.fields, spec.task) for line in data.open("rb")]
    coded = coder.documents([record.example for record in records])  # type: ignore[misc]
    documents = [one for one in coded if isinstance(one, Document)]
    assert not [one for one in coded if isinstance(one, BadRecord)]
    lengths = np.array([len(one.tokens) for one in documents])
    corpus = Corpus(
        tokens=np.concatenate([one.tokens for one in documents]),
        learned=np.concatenate([one.learned for one in documents]),
        bounds=np.concatenate(([0], np.cumsum(lengths))),
        weights=np.array([record.weight for record in records], dtype=np.float32),
        repeats=np.array([record.repeat for record in records], dtype=np.float32),
        hashes=np.array([content_hash(record.example) for record in records], dtype="V16"),
        digest="0",
    )
    padding = next((one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id) if one is not None), 0)
    held = int(len(documents) * spec.eval_fraction)
    chosen = np.arange(len(documents))
    long = "split" if spec.task == "pretrain" else "cut"

    def rows(part: Any) -> PackedSource:
        plan = plan_rows(corpus, part, spec.seq_len, long=long, packing=spec.packing and packing)  # type: ignore[arg-type]
        return PackedSource(corpus, plan, padding)

    return Dataset(rows(chosen[held:]), rows(chosen[:held]) if held else None, {"records": len(records)})
