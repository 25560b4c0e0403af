"""Data sets for tests: corpora of made-up documents, and files of records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tests import tiny_model

from tiermesh.kernel.training.data.corpus import Corpus, Facts
from tiermesh.protocol.training import TrainingSpec


def corpus_of(
    folder: Path, lengths: Sequence[int], *, vocabulary: int = 400, learned: Sequence[int] | None = None
) -> Corpus:
    """Documents of random tokens; all of them targets, or those marked in `learned`, one flag a token."""
    random = np.random.default_rng(0)
    total = sum(lengths)
    return Corpus(
        folder=folder,
        facts=Facts(format="jsonl", unit="line", records=len(lengths), digest="0"),
        tokens=random.integers(3, vocabulary, total).astype(np.uint16),
        learned=np.ones(total, dtype=np.uint8) if learned is None else np.array(learned, dtype=np.uint8),
        bounds=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        lines=np.arange(1, len(lengths) + 1),
        weights=np.ones(len(lengths), dtype=np.float32),
        repeats=np.ones(len(lengths), dtype=np.float32),
        hashes=np.arange(len(lengths), dtype=np.uint64),
    )


def write_jsonl(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def spec(**fields: Any) -> TrainingSpec:
    """A spec of which the data pipeline reads only what is said of data."""
    return TrainingSpec.model_validate({"model_name": "tiny", "dataset_path": "data", "seq_len": 64, **fields})


def tokenizer() -> Any:
    """The tiny models' own: bytes and a few words, ChatML."""
    return tiny_model._tokenizer()
