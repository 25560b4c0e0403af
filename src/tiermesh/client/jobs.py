"""A training job from far away: what it is given, its events as they happen, its end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

from tiermesh.client.answers import decoded
from tiermesh.errors import DeadlineExceeded, EngineFailed, TiermeshError, Unavailable
from tiermesh.protocol.jobs import JobReport
from tiermesh.protocol.training_events import TrainingEvent, from_line
from tiermesh.protocol.ulid import CHANCE_BYTES, make_ulid

BLOCK_BYTES = 1 << 20
"""Read and sent at once."""
LINE_LIMIT_BYTES = 8 << 20
"""A job's last event holds its spec, with a chat template perhaps."""
PATIENCE_S = 60.0
"""How long a node may be away while its job is followed: a restart with all it loads."""
AGAIN_S = 0.5
"""Between two tries meanwhile."""


class Data:
    """What is to be learnt from: a file of this machine, or what is in memory, under a `name` that tells its format."""

    def __init__(self, source: Path | str | bytes, name: str | None = None) -> None:
        """A text is a path. Bytes need a name such as `faq.jsonl`."""
        self._source = source if isinstance(source, bytes) else Path(source)
        self.name = name or (self._source.name if isinstance(self._source, Path) else "data")

    @property
    def size_bytes(self) -> int:
        """Raises `OSError` for a file that can't be read."""
        return self._source.stat().st_size if isinstance(self._source, Path) else len(self._source)

    async def sha256(self) -> str:
        """Hexadecimal. Raises `OSError` for a file that can't be read."""
        return await asyncio.to_thread(self._digest)

    async def chunks(self, offset: int = 0, size_bytes: int | None = None) -> AsyncIterator[bytes]:
        """A part of it; None: up to its end."""
        end = self.size_bytes if size_bytes is None else offset + size_bytes
        if isinstance(self._source, bytes):
            yield self._source[offset:end]
            return
        with self._source.open("rb") as file:
            file.seek(offset)
            while offset < end and (block := await asyncio.to_thread(file.read, min(BLOCK_BYTES, end - offset))):
                offset += len(block)
                yield block

    def _digest(self) -> str:
        if isinstance(self._source, bytes):
            return hashlib.sha256(self._source).hexdigest()
        with self._source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class Door(Protocol):
    """What a job needs of a client."""

    async def job_report(self, job: str) -> JobReport: ...
    async def cancel_job(self, job: str) -> JobReport: ...
    def job_chunks(self, job: str, after: int) -> AsyncIterator[bytes]: ...


class TrainingJob:
    """One job; `report` is how it was when last heard of."""

    def __init__(self, door: Door, report: JobReport) -> None:
        self._door = door
        self.report = report
        self.after = 0
        """The number of the last event that was given."""

    @property
    def id(self) -> str:
        return self.report.id

    @property
    def name(self) -> str:
        return self.report.name

    async def refresh(self) -> JobReport:
        """Ask how it is now."""
        self.report = await self._door.job_report(self.id)
        return self.report

    async def cancel(self) -> JobReport:
        """End it after a checkpoint. Raises `NotPossibleNow` when it is over."""
        self.report = await self._door.cancel_job(self.id)
        return self.report

    async def wait(self) -> JobReport:
        """Wait until it is over; `report.state` says how."""
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass
        return self.report

    async def events(self) -> AsyncGenerator[TrainingEvent | JobReport, None]:
        """What has happened and what happens, until the job is over; a `JobReport` at each change of its state.

        A node that ends and comes back within `PATIENCE_S` is not noticed. Raises what it says otherwise.
        """
        heard_at = time.monotonic()
        while True:
            try:
                async with aclosing(_events(self._door.job_chunks(self.id, self.after))) as events:
                    async for number, kind, data in events:
                        heard_at = time.monotonic()
                        self.after = number or self.after
                        event = self._understood(kind, data)
                        if event is not None:
                            yield event
            except (Unavailable, EngineFailed, DeadlineExceeded):
                if time.monotonic() > heard_at + PATIENCE_S:
                    raise
            if self.report.is_over:
                return
            if time.monotonic() > heard_at + PATIENCE_S:
                raise EngineFailed(f"the events of job {self.name} broke off")
            await asyncio.sleep(AGAIN_S)

    def _understood(self, kind: str, data: bytes) -> TrainingEvent | JobReport | None:
        if kind != "job":
            return from_line(data)
        try:
            self.report = decoded(JobReport, json.loads(data))
        except ValueError as error:
            raise TiermeshError(f"the report of job {self.name} can't be read: {error}") from error
        return self.report


def submission(spec: Mapping[str, object], *, name: str | None, job_id: str | None) -> dict[str, object]:
    """The body of `POST /api/train`, but for the data. The id is made here: a repeated request is the same job."""
    made = job_id or make_ulid(int(time.time() * 1000), secrets.token_bytes(CHANCE_BYTES))
    plain = {key: value for key, value in spec.items() if key not in ("dataset_path", "eval_path")}
    body: dict[str, object] = {"id": made, "spec": plain}
    return body if name is None else body | {"name": name}


async def _events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[tuple[int, str, bytes], None]:
    """Number (0: none), kind and data of each event of a stream."""
    number, kind, data, rest = 0, "", b"", b""
    try:
        async for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                field, _, value = line.partition(b": ")
                match field:
                    case b"id":
                        number = int(value)
                    case b"event":
                        kind = value.decode()
                    case b"data":
                        data = value
                    case b"" if not line and data:
                        yield number, kind, data
                        number, kind, data = 0, "", b""
            if len(rest) > LINE_LIMIT_BYTES:
                raise EngineFailed(f"an event of more than {LINE_LIMIT_BYTES} bytes")
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()
