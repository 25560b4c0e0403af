"""Blocks of records become blocks of tokens, in processes of their own that work side by side.

A block is what goes to a process and comes back, so it bounds the memory; blocks come back in the order they were
sent, so that a corpus is the same however many processes made it. A process that loses its parent reads the end of its
input and ends.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice
from queue import SimpleQueue
from typing import Any, Literal, NoReturn

from tiermesh.errors import EnvironmentUnfit, OutOfMemory
from tiermesh.kernel.training.data.readers import decoded
from tiermesh.kernel.training.data.records import (
    BadRecord,
    Chat,
    Completion,
    Pair,
    Record,
    Text,
    content_hash,
    understood,
)
from tiermesh.kernel.training.data.tokens import Coder, Document
from tiermesh.protocol.training import Fields, Task, TrainingSpec

BLOCK_RECORDS = 512
BLOCK_BYTES = 4_000_000
"""A block has so many records or bytes of text at most: some tens of MB while it is tokenised."""
AHEAD = 2
"""Blocks in hand for each process: it never waits for the next one."""
FEW_RECORDS = 2000
"""Tokenised at once here, in about the time in which another process starts."""
STOP_TIMEOUT_S = 10

Raw = tuple[int, object]


@dataclass(frozen=True, slots=True)
class Job:
    """How records are to be understood and tokenised; the same for all blocks."""

    tokenizer: Any
    fields: Fields
    task: Task
    template: str | None
    train_on: Literal["assistant", "all"]


def job_of(spec: TrainingSpec, tokenizer: Any) -> Job:
    """How a spec wants its records understood."""
    return Job(
        tokenizer=tokenizer,
        fields=spec.data.fields,
        task=spec.task,
        template=spec.data.template,
        train_on=spec.data.train_on,
    )


@dataclass(slots=True)
class Block:
    """What became of a block's records. A pair is two documents, the better one first; else a record is one.

    `lines`, `weights`, `repeats` and `hashes` have an entry a good record. `bad`: where and why.
    """

    tokens: bytes = b""
    learned: bytes = b""
    lengths: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    repeats: list[float] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    shapes: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)


class BlockCoder:
    """Does a job's blocks, one at a time."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._coder = Coder(job.tokenizer, template=job.template, train_on=job.train_on)

    def code(self, raws: Iterable[Raw]) -> Block:
        block = Block()
        records = list(self._understood(raws, block))
        examples = [example for _, record in records for example in _documents(record)]
        coded = iter(self._coder.documents(examples))
        kept: list[Document] = []
        for line, record in records:
            found = [next(coded) for _ in _documents(record)]
            bad = next((one for one in found if isinstance(one, BadRecord)), None)
            if bad is not None:
                block.bad.append((line, str(bad)))
                continue
            kept += [one for one in found if isinstance(one, Document)]
            _note(block, line, record)
        block.bad.sort()
        block.lengths = [len(document.tokens) for document in kept]
        block.tokens = b"".join(document.tokens.tobytes() for document in kept)
        block.learned = b"".join(document.learned.tobytes() for document in kept)
        return block

    def _understood(self, raws: Iterable[Raw], block: Block) -> Iterator[tuple[int, Record]]:
        for line, raw in raws:
            try:
                yield line, understood(decoded(raw), self._job.fields, self._job.task)
            except BadRecord as bad:
                block.bad.append((line, str(bad)))


def code_all(job: Job, raws: Iterable[Raw], processes: int) -> Iterator[Block]:
    """All records as blocks, in order. A few are done here; for more, `processes` are started."""
    blocks = _blocks(raws)
    few: list[list[Raw]] = []
    while sum(map(len, few)) < FEW_RECORDS and (block := next(blocks, None)) is not None:
        few.append(block)
    if processes <= 1 or sum(map(len, few)) < FEW_RECORDS:
        coder = BlockCoder(job)
        yield from (coder.code(block) for block in few)
        yield from (coder.code(block) for block in blocks)
        return
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(job)) for _ in range(processes)]
        yield from _side_by_side(workers, _chained(few, blocks))


def _documents(record: Record) -> tuple[Text | Completion | Chat, ...]:
    example = record.example
    return (example.chosen, example.rejected) if isinstance(example, Pair) else (example,)


def _note(block: Block, line: int, record: Record) -> None:
    block.lines.append(line)
    block.weights.append(record.weight)
    block.repeats.append(record.repeat)
    block.hashes.append(content_hash(record.example))
    block.shapes[record.example.shape] += 1
    block.fields.update(record.fields)


def _chained(first: list[list[Raw]], rest: Iterator[list[Raw]]) -> Iterator[list[Raw]]:
    yield from first
    yield from rest


def _blocks(raws: Iterable[Raw]) -> Iterator[list[Raw]]:
    records = iter(raws)
    while first := list(islice(records, 1)):
        block, size = first, _size(first[0][1])
        while len(block) < BLOCK_RECORDS and size < BLOCK_BYTES and (more := list(islice(records, 1))):
            block += more
            size += _size(more[0][1])
        yield block


def _size(raw: object) -> int:
    """About how many bytes of text a record has."""
    if isinstance(raw, bytes | str):
        return len(raw)
    if isinstance(raw, dict):
        return sum(_size(one) for one in raw.values())
    return sum(_size(one) for one in raw) if isinstance(raw, list) else 8


def _side_by_side(workers: list[_Worker], blocks: Iterator[list[Raw]]) -> Iterator[Block]:
    """A thread a process waits for it; whichever is idle has the next block."""
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def code(block: list[Raw]) -> Block:
        worker = idle.get()
        try:
            return worker.code(block)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(len(workers))
    try:
        waiting: deque[Future[Block]] = deque()
        for block in blocks:
            if len(waiting) == AHEAD * len(workers):
                yield waiting.popleft().result()
            waiting.append(threads.submit(code, block))
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


class _Worker:
    """A process that does blocks of one job. Pickles go both ways, between us and a child of ours alone."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __enter__(self) -> _Worker:
        quiet = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tiermesh.kernel.training.data.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **quiet},
        )
        self._send(self._job)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(STOP_TIMEOUT_S)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()

    def code(self, raws: list[Raw]) -> Block:
        self._send(raws)
        assert self._process.stdout is not None
        try:
            block = pickle.load(self._process.stdout)  # noqa: S301
        except (EOFError, pickle.UnpicklingError):
            self._say_death()
        assert isinstance(block, Block)
        return block

    def _send(self, what: object) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(what, self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError:
            self._say_death()

    def _say_death(self) -> NoReturn:
        code = self._process.wait(STOP_TIMEOUT_S)
        if code == -9:
            raise OutOfMemory("a process that tokenised was killed, most likely by the system for lack of memory")
        raise EnvironmentUnfit(f"a process that tokenised ended with code {code}; its last words are in the log")
