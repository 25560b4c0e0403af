"""All documents of a data set as tokens, one after the other, memory-mapped; made once from its file.

What is in it depends on the file's content, the tokenizer and how records are understood, which together are its key.
Row length, split and packing come later (`plan`), so that they can change without tokenising anew.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tiermesh.errors import BadData
from tiermesh.kernel.training.data import readers, store
from tiermesh.kernel.training.data.coding import Block, Job, code_all
from tiermesh.kernel.training.data.readers import NO_PLUGINS, Reader

VERSION = 1
"""Of the folder's form and of what becomes of a record."""
NAMED_BAD = 20
"""Bad records that are named with their lines; the others are counted."""

OnProgress = Callable[[int, int], None]
"""(bytes of the file that have been read, about; its size)"""

_ARRAYS: Mapping[str, str] = {
    "learned": "u1",
    "bounds": "<i8",
    "lines": "<i8",
    "weights": "<f4",
    "repeats": "<f4",
    "hashes": "<u8",
}


@dataclass(slots=True)
class Facts:
    """What is known of a corpus besides its tokens. `unit`: what `bad` counts in. `digest`: of tokens and targets."""

    format: str
    unit: str
    records: int = 0
    bad_records: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)
    shapes: dict[str, int] = field(default_factory=dict)
    fields: dict[str, int] = field(default_factory=dict)
    documents_a_record: int = 1
    number_type: str = "<u4"
    sizes: dict[str, int] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Document d is `tokens[bounds[d] : bounds[d + 1]]`; `learned` is 1 where a token is a target.

    The others have an entry a record, whose documents are next to one another: `weights` is how much its targets
    count, `repeats` how often it is seen in an epoch, `lines` where it is in the file. Equal `hashes`: equal contents.
    `cached`: it was there, and was not made just now.
    """

    folder: Path
    facts: Facts
    tokens: NDArray[Any]
    learned: NDArray[np.uint8]
    bounds: NDArray[np.int64]
    lines: NDArray[np.int64]
    weights: NDArray[np.float32]
    repeats: NDArray[np.float32]
    hashes: NDArray[np.uint64]
    cached: bool = False

    @property
    def digest(self) -> str:
        return self.facts.digest

    @property
    def documents(self) -> int:
        return len(self.bounds) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.bounds)


def open_corpus(
    data: Path,
    job: Job,
    *,
    cache: Path,
    form: str = "auto",
    max_bad_records: int = 0,
    processes: int = 1,
    plugins: Mapping[str, Reader] = NO_PLUGINS,
    on_progress: OnProgress = lambda done, total: None,
) -> Corpus:
    """The corpus of a file, from the cache, or made and kept there. Raises `BadData`."""
    form = readers.format_of(data, form, plugins)
    digest, stamp = store.file_digest(data, cache)
    folder = cache / _key(digest, job, form)
    found = _load(folder)
    if found is None:
        with store.locked(cache, folder.name):
            found = _load(folder)
            if found is None:
                with store.staged(folder, cache) as staging:
                    _build(
                        staging,
                        data,
                        readers.read(data, form, plugins),
                        form,
                        job,
                        max_bad_records,
                        processes,
                        on_progress,
                    )
                    if store.stamp_of(data) != stamp:
                        raise BadData(f"{data} was changed while it was read; start again when it is whole")
                found = _load(folder)
                assert found is not None
                found = replace(found, cached=False)
                store.prune(cache, time.time())
    store.used(folder)
    refuse_bad(data, found.facts, max_bad_records)
    return found


def refuse_bad(data: Path, facts: Facts, max_bad_records: int) -> None:
    """Raises `BadData` when too many records, or all, are bad."""
    if facts.bad_records <= max_bad_records and facts.records:
        return
    told = "; ".join(f"{facts.unit} {line} {reason}" for line, reason in facts.bad[:3])
    more = f"; and {facts.bad_records - 3} more" if facts.bad_records > 3 else ""
    if not facts.records:
        raise BadData(f"{data} has no record that can be used: {told}{more}" if told else f"{data} has no records")
    raise BadData(f"{data}: more than {max_bad_records} records can't be used (data.max_bad_records): {told}{more}")


def _key(digest: str, job: Job, form: str) -> str:
    told = {
        "version": VERSION,
        "data": digest,
        "format": form,
        "tokenizer": tokenizer_digest(job.tokenizer),
        "fields": job.fields.model_dump(),
        "task": "preference" if job.task == "preference" else "text",
        "template": job.template,
        "train_on": job.train_on,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def tokenizer_digest(tokenizer: Any) -> str:
    """Of all that decides which tokens a text and a conversation become."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    told = [backend.to_str(), tokenizer.chat_template, tokenizer.eos_token_id, dict(tokenizer.special_tokens_map)]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _build(
    folder: Path,
    data: Path,
    reading: readers.Reading,
    form: str,
    job: Job,
    max_bad_records: int,
    processes: int,
    on_progress: OnProgress,
) -> None:
    """Fill an empty folder. Too many bad records end it early."""
    facts = Facts(
        format=form,
        unit=reading.unit,
        documents_a_record=2 if job.task == "preference" else 1,
        number_type="<u2" if len(job.tokenizer) <= 2**16 else "<u4",
    )
    size = data.stat().st_size
    writer = _Writer(folder, facts)
    with writer, closing(reading.records):
        for block in code_all(job, reading.records, processes):
            writer.add(block)
            if facts.bad_records > max_bad_records:
                refuse_bad(data, facts, max_bad_records)
            on_progress(int(reading.share() * size), size)
    refuse_bad(data, facts, max_bad_records)
    facts.digest = writer.digest.hexdigest()
    (folder / store.FACTS).write_text(json.dumps(asdict(facts)), "utf-8")


class _Writer:
    """Appends blocks to a corpus in the making; `facts` are kept true."""

    def __init__(self, folder: Path, facts: Facts) -> None:
        self._facts = facts
        self._files: dict[str, BinaryIO] = {name: (folder / name).open("wb") for name in ("tokens", *_ARRAYS)}
        self._end = 0
        self._shapes: Counter[str] = Counter()
        self._fields: Counter[str] = Counter()
        self.digest = hashlib.sha256()

    def __enter__(self) -> None:
        self._write("bounds", np.zeros(1, dtype="<i8"))

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, block: Block) -> None:
        bounds = self._end + np.cumsum(np.array(block.lengths, dtype=np.int64))
        self._end = int(bounds[-1]) if len(bounds) else self._end
        tokens = np.frombuffer(block.tokens, dtype="<u4").astype(self._facts.number_type)
        for name, values in (("tokens", tokens), ("learned", np.frombuffer(block.learned, "u1")), ("bounds", bounds)):
            self.digest.update(self._write(name, values))
        hashes = np.frombuffer(b"".join(one[:8] for one in block.hashes), dtype="<u8")
        self._write("hashes", hashes)
        for name, numbers in (("lines", block.lines), ("weights", block.weights), ("repeats", block.repeats)):
            self._write(name, np.array(numbers, dtype=_ARRAYS[name]))
        self._count(block)

    def _count(self, block: Block) -> None:
        facts = self._facts
        facts.records += len(block.lines)
        facts.bad_records += len(block.bad)
        facts.bad += block.bad[: max(0, NAMED_BAD - len(facts.bad))]
        self._shapes.update(block.shapes)
        self._fields.update(block.fields)
        facts.shapes, facts.fields = dict(self._shapes), dict(self._fields)

    def _write(self, name: str, values: NDArray[Any]) -> bytes:
        written = np.ascontiguousarray(values, dtype=values.dtype).tobytes()
        self._files[name].write(written)
        self._facts.sizes[name] = self._facts.sizes.get(name, 0) + len(written)
        return written


def _load(folder: Path) -> Corpus | None:
    """What is in a finished folder; None where there is none, or where a file lost bytes since."""
    try:
        facts = Facts(**json.loads((folder / store.FACTS).read_text("utf-8")))
        if any((folder / name).stat().st_size != size for name, size in facts.sizes.items()):
            return None
    except (OSError, ValueError, TypeError):
        return None
    facts.bad = [(int(line), str(reason)) for line, reason in facts.bad]
    arrays = {name: _mapped(folder / name, dtype) for name, dtype in _types(facts)}
    return Corpus(folder=folder, facts=facts, cached=True, **arrays)


def _types(facts: Facts) -> Iterator[tuple[str, str]]:
    yield "tokens", facts.number_type
    yield from _ARRAYS.items()


def _mapped(path: Path, dtype: str) -> NDArray[Any]:
    if not path.stat().st_size:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")
