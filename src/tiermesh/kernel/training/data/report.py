"""What is worth telling of a data set before it is trained on. Plain JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tiermesh.kernel.training.data.corpus import Corpus
from tiermesh.kernel.training.data.plan import Plan


def report(corpus: Corpus, plans: Sequence[Plan]) -> dict[str, Any]:
    """Of the file: counts, bad records, token lengths of documents. Of the plans of what is trained on: their fill."""
    facts = corpus.facts
    lengths = corpus.lengths
    p50, p95 = np.percentile(lengths, (50, 95))
    rows = max(plan.rows for plan in plans)
    used = sum(int(plan.lengths.sum()) for plan in plans)
    return {
        "format": facts.format,
        "unit": facts.unit,
        "records": facts.records,
        "shapes": facts.shapes,
        "fields": facts.fields,
        "bad_records": facts.bad_records,
        "bad": named_bad(corpus),
        "tokens": int(lengths.sum()),
        "targets": sum(float(plan.row_targets.sum()) for plan in plans),
        "lengths": {"p50": int(p50), "p95": int(p95), "max": int(lengths.max()), "mean": float(lengths.mean())},
        "seq_len": plans[0].seq_len,
        "rows": rows,
        "fill": used / max(1, sum(plan.rows for plan in plans) * plans[0].seq_len),
        "cut": sum(plan.cut for plan in plans),
        "unlearnable": sum(plan.unlearnable for plan in plans),
        "digest": facts.digest,
    }


def named_bad(corpus: Corpus) -> list[dict[str, Any]]:
    """The first bad records of a file."""
    return [{"line": line, "reason": reason} for line, reason in corpus.facts.bad]
