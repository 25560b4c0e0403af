"""The crash report of a job, asked of a node that did not train it."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.daemon.training_desk import DONE, LIMIT_S, SPEC, STEP, TEXT, Desk, new_id, opened, play_scripts
from tests.training_fake import write_script

from tiermesh.client import RemoteClient
from tiermesh.config import Flags, resolve_options
from tiermesh.daemon.app import Daemon
from tiermesh.errors import NotFound, Unavailable

pytest.importorskip("torch")

DIES: list[dict[str, Any]] = [
    {"say": STEP},
    {"print": "Fatal Python error: Segmentation fault"},
    {"signal": int(signal.SIGSEGV)},
]


@asynccontextmanager
async def joined(desk: Desk, folder: Path, cluster: str) -> AsyncIterator[Desk]:
    """A second node, that has no model and so trains nothing; and whom the first one knows."""
    flags = Flags(
        name="elsewhere", cluster=cluster, state_dir=folder / "elsewhere", port=0, interface="127.0.0.1",
        no_detect=True, join=(desk.url.removeprefix("http://"),), config=folder / "cluster.yaml",
    )  # fmt: skip
    daemon = Daemon(resolve_options(flags, env={}))
    try:
        await daemon.start()
        ended = asyncio.ensure_future(daemon.run())
        url = json.loads((folder / "elsewhere" / "runtime.json").read_text())["url"]
        async with aiohttp.ClientSession() as http:
            made = Desk(http, url, folder / "elsewhere", daemon)
            async with asyncio.timeout(LIMIT_S):
                while not (await _sees(desk, "elsewhere") and await _sees(made, "desk")):
                    await asyncio.sleep(0.02)
            yield made
        daemon.stop()
        daemon.stop()
        await ended
    finally:
        await daemon.close()


@pytest.fixture(autouse=True)
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play_scripts(tmp_path, monkeypatch)


async def failed(desk: Desk, other: Desk) -> str:
    """The id of a job whose worker died, trained by either."""
    job = new_id()
    for each in (desk, other):
        write_script(each.run(job), DIES)
    body = {"id": job, "name": "faq", "spec": SPEC, "data": {"name": "faq.jsonl", "text": TEXT}, "open_data": True}
    status, told = await other.ask("POST", "/api/train", body)
    assert status == 200, told
    report = await desk.until(job, "failed")
    assert (report["node"], report["failure"]) == ("desk", "unexplained")
    return job


async def test_a_failure_is_read_at_another_node_until_its_own_is_away(tmp_path: Path) -> None:
    cluster = f"test-{secrets.token_hex(4)}"
    async with opened(tmp_path, cluster) as desk, joined(desk, tmp_path, cluster) as other:
        job = await failed(desk, other)
        async with RemoteClient(other.url) as mesh:
            found = await mesh.job_crash("faq")
            assert (found.job, found.attempt, found.node) == (job, 1, "desk")
            assert (found.report["kind"], found.report["returncode"]) == ("crashed", -signal.SIGSEGV)
            assert (found.events[-1], found.log) == (STEP, "Fatal Python error: Segmentation fault\n")
            assert await (await mesh.job("faq")).crash(attempt=1) == found
            with pytest.raises(NotFound, match="job faq has no attempt 2"):
                await mesh.job_crash("faq", attempt=2)
            assert (await desk.ask("GET", "/api/jobs/faq/crash"))[1] == found.model_dump()
            desk.daemon.stop()
            desk.daemon.stop()
            async with asyncio.timeout(LIMIT_S):
                while await _sees(other, "desk"):
                    await asyncio.sleep(0.02)
            with pytest.raises(Unavailable, match="attempt 1 was on node desk, which can't be asked"):
                await mesh.job_crash("faq")


async def test_a_job_that_ended_well_has_none(tmp_path: Path) -> None:
    async with opened(tmp_path, f"test-{secrets.token_hex(4)}") as desk:
        job = await desk.train(DONE, name="faq")
        await desk.until(job["id"], "completed")
        status, told = await desk.ask("GET", "/api/jobs/faq/crash")
        assert (status, told["error"]["type"]) == (404, "not_found")
        assert told["error"]["message"] == "there is no crash report of job faq: no attempt left one"


async def _sees(desk: Desk, name: str) -> bool:
    """Is there a coordinator, and this node up, as `desk` has it?"""
    told = (await desk.ask("GET", "/api/cluster"))[1]
    is_up = any(node["name"] == name and node["state"] == "up" for node in told["nodes"])
    return is_up and told["coordinator"] is not None
