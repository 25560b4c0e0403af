"""A run's data: from the file that a spec names to the rows that are trained on and those that are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiermesh.errors import BadData
from tiermesh.kernel.training.data.augment import TokenMasking
from tiermesh.kernel.training.data.batches import PackedSource, PairSource
from tiermesh.kernel.training.data.coding import job_of
from tiermesh.kernel.training.data.corpus import Corpus, OnProgress, open_corpus
from tiermesh.kernel.training.data.plan import Plan, cached_plan, long_for, plan_rows
from tiermesh.kernel.training.data.readers import NO_PLUGINS, Reader
from tiermesh.kernel.training.data.report import named_bad, report
from tiermesh.kernel.training.data.splitting import held_out, repeated
from tiermesh.protocol.training import TrainingSpec

AnySource = PackedSource | PairSource


@dataclass(frozen=True, slots=True)
class Dataset:
    """`held_out` None: nothing is. `report` is plain JSON for the run's events and the model card. `corpus` holds all
    records of the data, those held out of it too."""

    train: AnySource
    held_out: AnySource | None
    report: dict[str, Any]
    corpus: Corpus


def open_dataset(
    spec: TrainingSpec,
    data: Path,
    tokenizer: Any,
    *,
    cache: Path,
    eval_data: Path | None = None,
    packing: bool = True,
    processes: int = 1,
    plugins: Mapping[str, Reader] = NO_PLUGINS,
    on_progress: OnProgress = lambda done, total: None,
) -> Dataset:
    """Read, tokenise and plan, each only where that was not done before. Raises `BadData`.

    `packing` False: whatever the spec says, because this model does not keep packed documents apart.
    """
    job = job_of(spec, tokenizer)

    def opened(path: Path, form: str) -> Corpus:
        return open_corpus(
            path,
            job,
            cache=cache,
            form=form,
            max_bad_records=spec.data.max_bad_records,
            processes=processes,
            plugins=plugins,
            on_progress=on_progress,
        )

    corpus = opened(data, spec.data.format)
    away = opened(eval_data, "auto") if eval_data is not None else None
    sides = _sides(spec, corpus, away)
    rows = _Rows(spec, tokenizer, packing=packing)
    train = rows.source(corpus, sides.train, changed=True)
    if not len(sides.train):
        raise BadData(f"{data}: nothing is left to train on: {_where_gone(sides)}")
    if not train.rows:
        raise BadData(f"{data}: no record has a target within {spec.seq_len} tokens (seq_len); raise it")
    held = rows.source(away or corpus, sides.held_out, changed=False) if len(sides.held_out) else None
    if held is not None and not held.rows:
        held = None
    told = report(corpus, train.plans) | {
        "held_out": 0 if held is None else len(sides.held_out),
        "duplicates": sides.duplicates,
        "withheld": sides.withheld,
        "held_out_bad_records": 0 if away is None else away.facts.bad_records,
        "held_out_unit": "" if away is None else away.facts.unit,
        "held_out_bad": [] if away is None else named_bad(away),
    }
    return Dataset(train, held, told, corpus)


@dataclass(frozen=True, slots=True)
class Sides:
    """Numbers of records: those trained on, as often as they are; those held out, each once.

    `duplicates` are records of the data whose content another one before them has.
    """

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    duplicates: int
    withheld: int
    """Records that are also in the file of held-out ones, and so are not trained on."""


def _sides(spec: TrainingSpec, corpus: Corpus, away: Corpus | None) -> Sides:
    hashes = np.asarray(corpus.hashes)
    if away is None:
        held = held_out(hashes, spec.held_out_fraction, spec.seed)
        _, first = np.unique(hashes, return_index=True)
        is_first = np.zeros(len(hashes), dtype=np.bool_)
        is_first[first] = True
        chosen = np.flatnonzero(held & is_first)
    else:
        held = np.isin(hashes, away.hashes)
        chosen = np.arange(len(away.hashes))
    kept = np.flatnonzero(~held)
    return Sides(
        train=repeated(kept, np.asarray(corpus.repeats)[kept], hashes[kept], spec.seed),
        held_out=chosen,
        duplicates=len(hashes) - len(np.unique(hashes)),
        withheld=int(held.sum()) if away is not None else 0,
    )


def _where_gone(sides: Sides) -> str:
    if sides.withheld:
        return "every record is also in the file of held-out ones (eval_path)"
    return "every record is held out, or is to be repeated 0 times (data.fields.repeat)"


class _Rows:
    """From records to rows, as a spec wants them."""

    def __init__(self, spec: TrainingSpec, tokenizer: Any, *, packing: bool) -> None:
        self._spec = spec
        self._tokenizer = tokenizer
        self._packing = spec.packing and packing and spec.task != "preference"
        self._long = long_for(spec.task)
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
        self._padding = next((one for one in known if one is not None), 0)

    def source(self, corpus: Corpus, records: NDArray[np.int64], *, changed: bool) -> AnySource:
        if self._spec.task == "preference":
            return self._pairs(corpus, records)
        change = self._masking() if changed and self._spec.data.token_masking else None
        return PackedSource(corpus, self._plan(corpus, records), self._padding, change)

    def _pairs(self, corpus: Corpus, records: NDArray[np.int64]) -> PairSource:
        chosen, rejected = (self._plan(corpus, 2 * records + worse) for worse in (0, 1))
        return PairSource(corpus, chosen, rejected, self._padding)

    def _plan(self, corpus: Corpus, documents: NDArray[np.int64]) -> Plan:
        seq_len, packing, long = self._spec.seq_len, self._packing, self._long
        key = f"{seq_len}:{packing}:{long}:{hashlib.sha256(documents.tobytes()).hexdigest()}"
        return cached_plan(
            corpus.folder, key, lambda: plan_rows(corpus, documents, seq_len, long=long, packing=packing)
        )

    def _masking(self) -> TokenMasking:
        return TokenMasking(
            share=self._spec.data.token_masking,
            seed=self._spec.seed,
            vocabulary=len(self._tokenizer),
            mask=self._tokenizer.mask_token_id,
            kept=frozenset(self._tokenizer.all_special_ids),
        )
