"""`mesh train` and `mesh jobs` against a real daemon: sent, followed, let go of, looked at again, ended."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.cli.conftest import Mesh
from tests.daemon.training_daemon import LIMIT_S, SPEC, Machine, machine
from tests.training_runs import write_data, write_spec

pytest.importorskip("torch")
from tests import tiny_model

pytestmark = pytest.mark.timeout(400)
"""A node tries the job first, with the processor that the tests beside it leave."""


class Desk:
    """A folder with a spec and its data, and a node that is not told of it."""

    def __init__(self, folder: Path, machine: Machine, url: str) -> None:
        self.folder = folder
        self.machine = machine
        self.url = url

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tiermesh.cli.main", *arguments),
            cwd=self.folder,
            env={**os.environ, "MESH_URL": self.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def mesh(self, *arguments: str) -> tuple[int | None, str, str]:
        process = await self.start(*arguments)
        out, said = await asyncio.wait_for(process.communicate(), LIMIT_S)
        return process.returncode, out.decode(), said.decode()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    for name in ("node", "person"):
        (tmp_path / name).mkdir()
    write_data(tmp_path / "person" / "faq.jsonl", 200)
    write_spec(tmp_path / "person" / "spec.yaml", dataset_path="faq.jsonl", **SPEC)
    model = await asyncio.to_thread(tiny_model.build_folder, tmp_path / "tiny")
    async with machine(tmp_path / "node", model) as (made, client):
        yield Desk(tmp_path / "person", made, client.url)


async def test_a_job_is_sent_and_followed_to_its_end(desk: Desk) -> None:
    code, out, said = await desk.mesh("train", "spec.yaml", "--name", "faq")
    assert (code, said) == (0, ""), said
    lines = out.splitlines()
    assert lines[0] == "model       tiny"
    assert "job faq is with the mesh, by desk" in lines
    assert any(line.startswith("node        desk (") for line in lines)
    assert any(line.startswith("gate        runs") for line in lines)
    assert "attempt 1 on desk" in lines
    assert any(line.startswith("data: ") for line in lines)
    assert any(line.startswith("step ") for line in lines)
    assert any(line.startswith("result: `mesh jobs results faq") for line in lines[-2:])

    code, out, _ = await desk.mesh("jobs")
    assert (code, out.splitlines()[1].split()[:5]) == (0, ["faq", "completed", "tiny", "lora", "desk"])
    code, out, _ = await desk.mesh("jobs", "show", "faq")
    assert (code, "  held-out    " in out, "data        faq.jsonl" in out) == (0, True, True)
    assert "log         of attempt 1, on desk: mesh jobs logs faq\n" in out
    assert re.search(r"^checkpoint  after step \d+, saved on desk$", out, re.MULTILINE)
    code, out, _ = await desk.mesh("jobs", "results", "faq", "--out", "got")
    assert (code, "adapter_model.safetensors" in out, (desk.folder / "got" / "adapter_config.json").exists()) == (
        0,
        True,
        True,
    )
    code, out, _ = await desk.mesh("jobs", "logs", "faq")
    assert code == 0
    code, out, _ = await desk.mesh("jobs", "report", "faq")
    assert (code, out.startswith("#")) == (0, True)
    code, out, _ = await desk.mesh("jobs", "watch", "faq", "--json")
    told = [json.loads(line) for line in out.splitlines()]
    assert (code, told[-1]["event"], told[-1]["state"]) == (0, "job", "completed")
    assert [event["step"] for event in told if event["event"] == "step"][:3] == [1, 2, 3]
    code, _, said = await desk.mesh("jobs", "cancel", "faq")
    assert (code, said) == (1, "mesh: job faq is completed: nothing is left to cancel\n")
    assert (await desk.mesh("jobs", "rm", "faq"))[:2] == (0, "job faq is forgotten\n")
    code, _, said = await desk.mesh("jobs", "show", "faq")
    assert (code, said) == (1, "mesh: no job is called 'faq'; `mesh jobs` lists them\n")
    assert (await desk.mesh("jobs"))[1] == "no training jobs; `mesh train SPEC` makes one\n"


@pytest.mark.long
async def test_ctrl_c_lets_go_and_the_job_goes_on(desk: Desk) -> None:
    following = await desk.start("train", "run", "spec.yaml", "--name", "long", "--set", "num_epochs=2000")
    assert following.stdout is not None
    async with asyncio.timeout(LIMIT_S):
        while not (await following.stdout.readline()).startswith(b"step "):
            pass
    code, _, refused = await desk.mesh("jobs", "rm", "long")
    assert (code, refused) == (1, "mesh: job long is running: cancel it first\n")
    following.send_signal(signal.SIGINT)
    _, said = await asyncio.wait_for(following.communicate(), LIMIT_S)
    assert following.returncode == 130
    assert said.decode() == (
        "mesh: job long goes on; `mesh jobs watch long` follows it, `mesh jobs cancel long` ends it\n"
    )
    _, out, _ = await desk.mesh("jobs")
    assert out.splitlines()[1].split()[:2] == ["long", "running"]
    watching = await desk.start("jobs", "watch", "long")
    code, out, _ = await desk.mesh("jobs", "cancel", "long")
    assert (code, out) == (0, "job long is cancelling\n")
    _, said = await asyncio.wait_for(watching.communicate(), LIMIT_S)
    assert watching.returncode == 1
    assert said.decode().startswith("mesh: job long cancelled")


def test_what_belongs_to_local_runs_is_said(alone: Mesh, tmp_path: Path) -> None:
    write_spec(tmp_path / "spec.yaml", model_name="m", dataset_path="x.jsonl")
    done = alone("train", "run", "spec.yaml", "--out", "x")
    assert (done.exit_code, "go with --local" in done.stderr) == (2, True)
    done = alone("train", "spec.yaml")
    assert (done.exit_code, "x.jsonl, which is no file on this machine" in done.stderr) == (2, True)
    done = alone("train", "--model", "m")
    assert (done.exit_code, "dataset_path is missing" in done.stderr) == (2, True)
