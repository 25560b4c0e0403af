"""The routes of training jobs: `/api/train`, `/api/jobs`, `/api/data`."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypedDict, Unpack
from urllib.parse import quote

import aiohttp

from tiermesh.client.answers import checked, decoded
from tiermesh.client.data import Data
from tiermesh.client.http import CONNECT_TIMEOUT_S, Http
from tiermesh.client.jobs import Decision, LogText, TrainingJob
from tiermesh.client.upload import LOST, Piece, upload
from tiermesh.errors import TiermeshError, Unavailable
from tiermesh.protocol.headers import LOG_OFFSET
from tiermesh.protocol.jobs import CrashReport, DataReport, JobList, JobReport, ResultReport
from tiermesh.protocol.ulid import CHANCE_BYTES, make_ulid

PATIENCE_S = 60.0
"""How long a submission is repeated while the mesh has no coordinator, or its answers are lost."""
AGAIN_S = 0.5
"""Between two tries, where the mesh does not say how long."""
PAUSE_LIMIT_S = 5.0
"""Between two tries, whatever it says."""


class JobOptions(TypedDict, total=False):
    """What may be said of a job beside its spec; fields of `POST /api/train`."""

    name: str | None
    approve: bool
    """What the gate would ask a person for is approved already."""
    max_usd: float | None
    """Refuse it when it may cost more."""
    priority: int
    open_data: bool
    """Data, checkpoints and result may go to any node of a mesh without a token."""
    gates: Mapping[str, object] | None
    """What the result must reach, where it differs from the mesh's policy."""


class JobDoor(Http):
    """All that can be done with jobs."""

    async def train(
        self,
        spec: Mapping[str, object],
        data: Data,
        *,
        eval_data: Data | None = None,
        job_id: str | None = None,
        patience_s: float = PATIENCE_S,
        waits: Callable[[TiermeshError], None] | None = None,
        **options: Unpack[JobOptions],
    ) -> TrainingJob:
        """Have the mesh train, and return as soon as it has accepted; the data travels with the request.

        `spec` is a training spec without its paths. Sent again with the same `job_id`, it is the same job: so does this
        method itself, for `patience_s`, when an answer is lost or there is no coordinator, to another node when this
        one is gone; `waits` hears why.
        """
        body = submission(spec, job_id=job_id, **options)
        datasets = {"data": data} if eval_data is None else {"data": data, "eval_data": eval_data}
        reached, until = False, None
        while True:
            try:
                for field, given in datasets.items():
                    body[field] = {"sha256": await upload(self, given), "name": given.name}
                if not reached:
                    await self.meet()
                reached = True
                told = await self._json("POST", "/api/train", body)
                break
            except LOST as error:
                until = until or time.monotonic() + patience_s
                if not reached or time.monotonic() > until:
                    raise
                if waits is not None:
                    waits(error)
                await asyncio.sleep(_pause_s(error))
                await self.turn()
        return TrainingJob(self, decoded(JobReport, told))

    async def jobs(self, limit: int | None = None) -> list[JobReport]:
        """The mesh's training jobs, the newest last: all that are not over, and the `limit` others that ended last
        (None: 200; 10,000 at most). `job_list` tells how many others there are."""
        return (await self.job_list(limit)).jobs

    async def job_list(self, limit: int | None = None) -> JobList:
        """As `jobs`, with how many are left out, in `more`."""
        query = "" if limit is None else f"?limit={limit}"
        return decoded(JobList, await self._json("GET", f"/api/jobs{query}"))

    async def job(self, job: str) -> TrainingJob:
        """One of them, by name or id. Raises `NotFound`."""
        return TrainingJob(self, await self.job_report(job))

    async def job_report(self, job: str) -> JobReport:
        """How it is now."""
        return decoded(JobReport, await self._json("GET", _path(job)))

    async def decide_job(self, job: str, decision: Decision) -> JobReport:
        """Approve or optimize one that waits for it, or cancel one."""
        return decoded(JobReport, await self._json("POST", f"{_path(job)}/{decision}", {}))

    async def job_results(self, job: str) -> ResultReport:
        """How it ended, and the files that it left."""
        return decoded(ResultReport, await self._json("GET", f"{_path(job)}/results"))

    async def job_log(
        self, job: str, *, attempt: int | None = None, lines: int | None = None, after: int | None = None
    ) -> LogText:
        """What the worker of an attempt (None: the newest) said, its last `lines` (0: all that is kept), or what came
        `after` an offset."""
        asked = {"attempt": attempt, "lines": lines, "after": after}
        query = "&".join(f"{name}={value}" for name, value in asked.items() if value is not None)
        text, headers = await self._text(f"{_path(job)}/logs?{query}")
        offset = headers.get(LOG_OFFSET, "")
        return LogText(text, int(offset) if offset.isascii() and offset.isdigit() else None)

    async def job_crash(self, job: str, *, attempt: int | None = None) -> CrashReport:
        """What is kept of its newest failure, or of that of one attempt. Raises `NotFound` where nothing is,
        `Unavailable` while the node that has it is away."""
        query = "" if attempt is None else f"?attempt={attempt}"
        return decoded(CrashReport, await self._json("GET", f"{_path(job)}/crash{query}"))

    async def job_page(self, job: str) -> str:
        """Its report in Markdown."""
        return (await self._text(f"{_path(job)}/report"))[0]

    async def job_page_data(self, job: str) -> object:
        """The same as JSON data."""
        return await self._json("GET", f"{_path(job)}/report.json")

    async def job_picture(self, job: str) -> bytes:
        """Its loss curve, a PNG. Raises `NotFound` while there is none."""
        chunks = self._chunks(f"{_path(job)}/report.png", method="GET")
        return b"".join([chunk async for chunk in chunks])

    async def remove_job(self, job: str) -> None:
        """Forget a job that is over, with its result. Raises `NotPossibleNow`."""
        await self._json("DELETE", _path(job))

    def job_chunks(self, job: str, after: int) -> AsyncIterator[bytes]:
        """The raw stream of a job's events that come after the `after`-th."""
        return self._chunks(f"{_path(job)}/events?after={after}", method="GET")

    def result_chunks(self, job: str, name: str) -> AsyncIterator[bytes]:
        """The bytes of a file that it left."""
        return self._chunks(f"{_path(job)}/results/{quote(name)}", method="GET")

    async def data_report(self, sha256: str) -> DataReport:
        """How much of this data the node has. Raises `NotFound` when it has nothing of it."""
        return decoded(DataReport, await self._json("GET", f"/api/data/{sha256}"))

    async def put_data(self, sha256: str, data: Data, piece: Piece) -> DataReport:
        """Send a piece of it."""
        limits = aiohttp.ClientTimeout(None, sock_connect=CONNECT_TIMEOUT_S, sock_read=self._timeout_s)
        async with self._request("PUT", f"/api/data/{sha256}", None, limits, (data, piece)) as response:
            return decoded(DataReport, await checked(response))


def submission(
    spec: Mapping[str, object], *, job_id: str | None = None, **options: Unpack[JobOptions]
) -> dict[str, object]:
    """The body of `POST /api/train`, but for the data. The id is made here: a repeated request is the same job."""
    made = job_id or make_ulid(int(time.time() * 1000), secrets.token_bytes(CHANCE_BYTES))
    plain = {key: value for key, value in spec.items() if key not in ("dataset_path", "eval_path")}
    said = {name: value for name, value in options.items() if value is not None}
    return {"id": made, "spec": plain, **said}


def _path(job: str) -> str:
    return f"/api/jobs/{quote(job, safe='')}"


def _pause_s(error: TiermeshError) -> float:
    wanted = error.retry_after_s if isinstance(error, Unavailable) else AGAIN_S
    return min(max(wanted, 0.0), PAUSE_LIMIT_S)
