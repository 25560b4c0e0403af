"""`python -m tiermesh.kernel.training.data.inspect`: what a file of data is, as JSON; one request on stdin.

    {"file": PATH, "tokenizer": FOLDER or null, "cache": FOLDER, "spec": a training spec's fields}

The answer is `report`'s fields and `sample`, or `{"error": {"type", "message"}}` with exit code 3. Without a tokenizer
records are read and understood, and nothing is said of tokens. Where the spec says no task, the records do. What is
tokenised here, a training run finds done.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tiermesh.errors import InvalidInput, ModelUnusable, TrainingFailure
from tiermesh.kernel.training.data import readers
from tiermesh.kernel.training.data.coding import job_of
from tiermesh.kernel.training.data.corpus import NAMED_BAD, Corpus, open_corpus
from tiermesh.kernel.training.data.plan import long_for, plan_rows
from tiermesh.kernel.training.data.records import BadRecord, is_pair, understood
from tiermesh.kernel.training.data.report import report
from tiermesh.protocol.training import Task, TrainingSpec
from tiermesh.protocol.training_problems import read_spec

FAILED = 3
ANY_NUMBER = 2**62
"""Of bad records: they are what one looks for."""
LOOKED_AT = 20
"""Records read to tell pairs from other data."""
SAMPLE_TOKENS = 400
"""Shown of one document: about a page."""


def inspected(file: Path, tokenizer: Any, cache: Path, spec: TrainingSpec, processes: int) -> dict[str, Any]:
    """All that is worth knowing of a file before it is trained on. Raises `BadData`."""
    if "task" not in spec.model_fields_set:
        spec = spec.model_copy(update={"task": _task(file, spec)})
    if tokenizer is None:
        return {"task": spec.task, **_survey(file, spec)}
    corpus = open_corpus(
        file,
        job_of(spec, tokenizer),
        cache=cache,
        form=spec.data.format,
        max_bad_records=ANY_NUMBER,
        processes=processes,
    )
    documents = np.arange(corpus.documents)
    packing = spec.packing and spec.task != "preference"
    plan = plan_rows(corpus, documents, spec.seq_len, long=long_for(spec.task), packing=packing)
    shown = [_sample(corpus, document, tokenizer) for document in range(corpus.facts.documents_a_record)]
    return {"task": spec.task, **report(corpus, [plan]), "sample": shown}


def _task(file: Path, spec: TrainingSpec) -> Task:
    """The spec's, unless most of the first records are pairs."""
    form = readers.format_of(file, spec.data.format, {})
    pairs = known = 0
    for _, raw in islice(readers.read(file, form).records, LOOKED_AT):
        try:
            record = readers.decoded(raw)
        except BadRecord:
            continue
        known += 1
        pairs += isinstance(record, Mapping) and is_pair(record)
    return "preference" if pairs * 2 > known else spec.task


def _survey(file: Path, spec: TrainingSpec) -> dict[str, Any]:
    """What can be said without a tokenizer."""
    form = readers.format_of(file, spec.data.format, {})
    reading = readers.read(file, form)
    shapes: Counter[str] = Counter()
    fields: Counter[str] = Counter()
    bad: list[dict[str, Any]] = []
    for line, raw in reading.records:
        try:
            record = understood(readers.decoded(raw), spec.data.fields, spec.task)
        except BadRecord as error:
            bad.append({"line": line, "reason": str(error)})
            continue
        shapes[record.example.shape] += 1
        fields.update(record.fields)
    return {
        "format": form,
        "unit": reading.unit,
        "records": shapes.total(),
        "shapes": dict(shapes),
        "fields": dict(fields),
        "bad_records": len(bad),
        "bad": bad[:NAMED_BAD],
    }


def _sample(corpus: Corpus, document: int, tokenizer: Any) -> list[dict[str, Any]]:
    """A document as stretches of text, each learnt or not."""
    start, end = int(corpus.bounds[document]), int(corpus.bounds[document + 1])
    end = min(end, start + SAMPLE_TOKENS)
    tokens, learned = corpus.tokens[start:end], corpus.learned[start:end]
    changes = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), end - start]
    return [
        {"text": tokenizer.decode(tokens[one:other].tolist()), "learned": bool(learned[one])}
        for one, other in pairwise(changes)
    ]


def _tokenizer(folder: str | None) -> Any:
    if folder is None:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelUnusable(f"{folder} has no tokenizer that can be read: {' '.join(str(error).split())}") from error


def main() -> int:
    """Answer the request on stdin."""
    asked = json.load(sys.stdin)
    try:
        spec = read_spec({"model_name": "-", "dataset_path": "-", **asked.get("spec", {})})
        told = inspected(
            Path(asked["file"]),
            _tokenizer(asked.get("tokenizer")),
            Path(asked["cache"]),
            spec,
            processes=os.cpu_count() or 1,
        )
    except (TrainingFailure, InvalidInput) as error:
        print(json.dumps({"error": {"type": error.type, "message": str(error)}}))  # noqa: T201
        return FAILED
    print(json.dumps(told))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]  # Tokenizers need none, and are there sooner without.
    sys.exit(main())
