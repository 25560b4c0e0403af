"""Who waits for news of a job."""

from __future__ import annotations

import asyncio

from tiermesh.core.jobs import JobId


class Watchers:
    """By job. All on one loop."""

    def __init__(self) -> None:
        self._waiting: dict[JobId, set[asyncio.Event]] = {}

    def tell(self, job: JobId) -> None:
        """Something happened to it."""
        for news in self._waiting.get(job, ()):
            news.set()

    async def changed(self, job: JobId, within_s: float) -> None:
        """Wait until something may have happened to it, `within_s` at most."""
        news = asyncio.Event()
        waiting = self._waiting.setdefault(job, set())
        waiting.add(news)
        try:
            async with asyncio.timeout(within_s):
                await news.wait()
        except TimeoutError:
            pass
        finally:
            waiting.discard(news)
            if not waiting:
                self._waiting.pop(job, None)
